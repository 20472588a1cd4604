"""The document that describes a checkpoint, in the sidecar and inside the file.

Both copies are the same JSON. A fingerprint of the weights' names and shapes ties the document to
its file, so that a sidecar copied from another run is found out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from panovlm.checkpoint.documents.compact import compact
from panovlm.checkpoint.formats.header import RECORD
from panovlm.checkpoint.names.keymap import MARKERS
from panovlm.config.base import Field, StrictModel
from panovlm.config.model_recipe import LoRASettings, Recipe
from panovlm.config.problems import ValidationError, sentence
from panovlm.errors import CheckpointError

SCHEMA_VERSION = 1
EMBEDDED = "panovlm_metadata"
"""Entry of a checkpoint file that holds the document as a JSON string."""
OUTPUT_LAYERS = (".lm_head.weight", ".embed_out.weight")
"""Endings of the names under which language models store their output layer."""
_LEFT_OUT = (*OUTPUT_LAYERS, *MARKERS)  # nor what only marks a checkpoint of this family
LIBRARIES = ("panovlm", "torch", "transformers", "peft", "lightning", "tokenizers")


class TrainingRecord(StrictModel):
    """Where in its training a checkpoint was written, as far as it is known."""

    epoch: int | None = None
    global_step: int | None = None
    val_loss: float | None = None
    stage_config: dict[str, Any] = Field(default_factory=dict)
    data: dict[str, Any] = Field(default_factory=dict)
    upstream_checkpoint: str | None = None


Prefix = Literal["vision_backbone.encoder.", "language_model."]
"""Beginning of the names of a backbone's tensors."""


class Reference(StrictModel):
    """A frozen backbone that a checkpoint does not hold, but refers to."""

    name: str
    """Folder or hub id that has its weights."""
    digest: str
    """Digest of the names and values of the tensors that are left out; empty: never taken."""


class Conversion(StrictModel):
    """How a checkpoint was made out of another one."""

    source: str
    """Fingerprint of the weights that it was made of."""
    merged_lora: LoRASettings | None = None
    """Adapters that were added into the weights, and are no longer there on their own."""
    dtype: str | None = None
    """Floating-point type that the weights were rounded to."""


class CheckpointMetadata(StrictModel):
    """Everything that is known about a checkpoint besides its weights."""

    format: Literal["panovlm-checkpoint"] = "panovlm-checkpoint"
    schema_version: Literal[1] = SCHEMA_VERSION
    experiment_name: str = ""
    stage: str = ""
    fingerprint: str
    """Digest of the weights' names and shapes, see :func:`fingerprint`."""
    amends: str = ""
    """:meth:`identity` of the copy inside the checkpoint file that this document corrects: weights
    are not rewritten for a repair, so that the copy keeps what it says."""
    amends_weights: str = ""
    """:meth:`~panovlm.checkpoint.documents.recipe_record.RecipeRecord.identity` of the settings
    among the weights that this document corrects, likewise."""
    recipe: Recipe
    assumed: tuple[str, ...] = ()
    """Fields of the recipe that nobody knew when this document was made from a bare checkpoint."""
    inferred: dict[str, str] = Field(default_factory=dict)
    """Fields of the recipe that were read off the weights when this document was made from a bare
    checkpoint, and the evidence."""
    references: dict[Prefix, Reference] = Field(default_factory=dict)
    """Backbones of which tensors are left out of the file."""
    tokenizer: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of each tokenizer file."""
    training: TrainingRecord = TrainingRecord()
    conversions: tuple[Conversion, ...] = ()
    """What was done to the weights after training, oldest first."""
    versions: dict[str, str] = Field(default_factory=dict)
    created_at: str = ""
    probe: dict[str, Any] | None = None
    """What every part of the model computes on a fixed input, see
    :mod:`panovlm.checkpoint.probe.record`. It is typed only when it is compared, so that a damaged
    one does not stop the settings from being read."""

    def to_json(self) -> str:
        """Return the document as JSON text."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False)

    def digest(self) -> str:
        """Return a digest of the whole document."""
        return _digest(self.to_json())

    def identity(self) -> str:
        """Return a digest of the model that the document describes.

        It is the same for every checkpoint of one run, whatever the epoch.
        """
        return _digest(f"{self.fingerprint}\n{compact(self.recipe.model_dump(mode='json'))}")


def fingerprint(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return a digest of names and shapes; order and storage type do not matter.

    Neither does whether the language model's output layer is stored: where it is tied to the token
    embeddings, some formats store it once, others twice. Its shape is that of the embeddings.

    Args:
        shapes: the model's own names (without wrappers and aliases) to shapes.
    """
    return _of_lines({name: _line(name, shape) for name, shape in shapes.items()}, _LEFT_OUT)


def fingerprints(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Return every fingerprint by which a document can name these weights, today's first.

    Documents from before 0.1.0 counted the marker of this family and the language model's output
    layer, also where the file stores it only as the token embeddings that it is tied to.

    Args:
        shapes: as for :func:`fingerprint`.
    """
    lines = {name: _line(name, shape) for name, shape in shapes.items()}
    today = _of_lines(lines, _LEFT_OUT)
    lines.pop(RECORD, None)
    marked = _of_lines(lines, OUTPUT_LAYERS)
    if not any(name.endswith(OUTPUT_LAYERS) for name in shapes):
        table = "model.embed_tokens.weight"
        tied = {
            name.removesuffix(table) + "lm_head.weight": shape
            for name, shape in shapes.items()
            if name.startswith("language_model.") and name.endswith(table)
        }
        lines |= {name: _line(name, shape) for name, shape in tied.items()}
    return today, marked, _of_lines(lines)


def _line(name: str, shape: tuple[int, ...]) -> str:
    return f"{name} {list(shape)}"


def _of_lines(lines: Mapping[str, str], left_out: tuple[str, ...] = ()) -> str:
    kept = [line for name, line in lines.items() if not name.endswith(left_out)]
    return _digest("\n".join(sorted(kept)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def library_versions() -> dict[str, str]:
    """Return the installed versions of the libraries that shape a checkpoint."""
    from importlib.metadata import version  # takes longer to import than all the rest here

    return {name: version(name) for name in LIBRARIES}


def now() -> str:
    """Return the current time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_ours(document: Mapping[str, Any]) -> bool:
    """Tell whether a metadata document is of this format (else: the original system's)."""
    return "schema_version" in document or document.get("format") == "panovlm-checkpoint"


def parse(document: Mapping[str, Any], origin: str) -> CheckpointMetadata:
    """Type a document of this format.

    Args:
        document: parsed JSON.
        origin: file that it came from, for messages.

    Raises:
        CheckpointError: it is of a newer version, or a field is wrong.
    """
    found = document.get("schema_version")
    if isinstance(found, int) and found > SCHEMA_VERSION:
        raise CheckpointError(
            f"{origin} has schema version {found}; this PanoVLM reads up to {SCHEMA_VERSION}. "
            "Install a newer PanoVLM."
        )
    try:
        return CheckpointMetadata.model_validate(document)
    except ValidationError as error:
        problem = error.problems[0]
        mend = "remove it and run `panovlm add-metadata` to write it anew."
        if problem.path[-1:] == ("resampler_type",):
            mend = "if not, install the package that defines that resampler."
        raise CheckpointError(
            f"{origin}: {sentence(str(problem))} The file was edited or written by another "
            f"program; {mend}"
        ) from error


def read_json(path: Path) -> tuple[dict[str, Any], str | None]:
    """Read a sidecar; of one that is cut off, everything before the cut.

    Returns:
        The document, and a note when it was cut off.

    Raises:
        CheckpointError: the file is not JSON, and not the beginning of JSON either.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not a text file; remove or repair it.") from error
    note = None
    if not text.strip(" \t\r\n\0"):  # what a crash may leave of a file that was being written
        return {}, f"{path.name} is empty, as if it had been cut off; it says nothing"
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        document = _salvage(text)
        if document is None:
            raise CheckpointError(
                f"{path}:{error.lineno}: not JSON ({error.msg}). Remove it and run "
                "`panovlm add-metadata` to write it anew."
            ) from error
        note = f"{path.name} is cut off after {len(text)} characters; what stands before is used"
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} holds no JSON object; remove it or write it anew.")
    return document, note


def _salvage(text: str) -> dict[str, Any] | None:
    """Return the complete entries of a JSON object that was cut off, or ``None``."""
    closers: list[str] = []
    cuts: list[tuple[int, str]] = []
    in_string = escaped = False
    for position, char in enumerate(text):
        if in_string:
            if not escaped and char == '"':
                in_string = False
            escaped = char == "\\" and not escaped
        elif char == '"':
            in_string = True
        elif char in "{[":
            closers.append("}" if char == "{" else "]")
            cuts.append((position + 1, "".join(reversed(closers))))
        elif char in "}]":
            if not closers or closers.pop() != char:
                return None
            cuts.append((position + 1, "".join(reversed(closers))))
        elif char == ",":
            cuts.append((position, "".join(reversed(closers))))
    if not closers:
        return None
    for position, ending in reversed(cuts):
        if "]" in ending:
            continue  # half of a list would look like a whole one
        try:
            document = json.loads(text[:position] + ending)
        except json.JSONDecodeError:
            continue
        return document if isinstance(document, dict) else None
    return None
