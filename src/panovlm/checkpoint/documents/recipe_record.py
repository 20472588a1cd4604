"""The recipe as bytes that travel among the weights.

Every model keeps them in a buffer, so that a bare state dict tells what no shape shows, whoever
saves it and in whatever container. They are the JSON of a :class:`RecipeRecord`, compressed by
zlib and filled up with zeros to whole blocks: models whose settings differ a little then still
have buffers of one size. No torch is imported here.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import Any, Literal

from panovlm.checkpoint.formats.header import MAX_RECORD, RECORD, Header
from panovlm.checkpoint.names.keymap import KeyMap
from panovlm.config.base import StrictModel
from panovlm.config.model_recipe import Recipe
from panovlm.config.problems import ValidationError, sentence
from panovlm.errors import CheckpointError

_BLOCK = 4096
_MAX_TEXT = 8 << 20
_MAX_DEPTH = 32
_ELSEWHERE = f"the tensor {RECORD} of another checkpoint of the same run"


ORIGIN = f"recipe in the weights ({RECORD})"
"""How the record is called where it is a source of settings."""

LABELS = frozenset(
    (
        "_name_or_path",
        "architectures",
        "chunk_size_feed_forward",
        "dtype",
        "id2label",
        "initializer_range",
        "is_encoder_decoder",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "transformers_version",
        "use_cache",
    )
)
"""Entries of a backbone's configuration that decide nothing about what it computes."""


class RecipeRecord(StrictModel):
    """What the buffer tells."""

    format: Literal["panovlm-recipe"] = "panovlm-recipe"
    schema_version: Literal[1] = 1
    recipe: Recipe
    assumed: tuple[str, ...] = ()
    """Fields of the recipe that nobody knew when the model was opened."""
    vision_token_id: int | None = None
    """Token of the placeholder that the vision tokens take the place of."""

    def to_bytes(self) -> bytes:
        """Return the same bytes for the same settings, a multiple of 4096."""
        plain = {**self.model_dump(mode="json"), "recipe": _unlabelled(self.recipe)}
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        packed = zlib.compress(text.encode(), 9)
        return packed.ljust(-(-len(packed) // _BLOCK) * _BLOCK, b"\0")

    def identity(self) -> str:
        """Return a digest of what the record tells about the model."""
        text = json.dumps(_unlabelled(self.recipe), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def tells(self, recipe: Recipe) -> bool:
        """Whether it says the same as a recipe, but for mere labels."""
        return _unlabelled(self.recipe) == _unlabelled(recipe)

    @classmethod
    def from_bytes(cls, data: bytes, origin: str) -> RecipeRecord:
        """Read what :meth:`to_bytes` wrote.

        Args:
            data: the bytes, from anywhere; no more than 8 MiB of text are unpacked from them.
            origin: file and tensor, for messages.

        Raises:
            CheckpointError: they are damaged, or of a newer version.
        """
        raw = _parse(_unpack(data, origin), origin)
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            problem = sentence(str(error.problems[0]))
            raise CheckpointError(
                f"{origin} cannot be used: {problem} It was written by another version of PanoVLM, "
                "or damaged; open it with that version, or take another copy."
            ) from error


def _unlabelled(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain data, without the labels in the backbones' configurations."""
    plain = recipe.model_dump(mode="json")
    for section in ("vision_config", "language_config"):
        config = plain["models"][section]
        if config is not None:
            kept = {key: value for key, value in config.items() if key not in LABELS}
            plain["models"][section] = kept
    return plain


def read_record(header: Header, keys: KeyMap) -> RecipeRecord | None:
    """Return the settings that the weights of a checkpoint keep, if they do.

    Args:
        header: what the file says of itself.
        keys: its names.

    Raises:
        CheckpointError: they are damaged, or of a newer version.
    """
    stored = keys.files.get(RECORD)
    if stored is None:
        return None
    origin = f"{header.path} ({stored})"
    data = header.records.get(stored)
    if data is None:
        info = header.tensors[stored]
        raise CheckpointError(
            f"{origin} is {info.dtype} {list(info.shape)}; the settings of the model were expected "
            f"there, as a row of at most {MAX_RECORD} uint8. They were lost when the tensors were "
            f"changed; take the file from before, or put {_ELSEWHERE} in the place of this one."
        )
    return RecipeRecord.from_bytes(data, origin)


def _unpack(data: bytes, origin: str) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, _MAX_TEXT)
    except zlib.error as error:
        raise _damaged(origin, f"it cannot be unpacked ({error})") from error
    if len(text) == _MAX_TEXT:
        raise _damaged(origin, f"it unpacks to {_MAX_TEXT} bytes or more")
    if not unpacker.eof:
        raise _damaged(origin, "it is cut off")
    if unpacker.unused_data.strip(b"\0"):
        raise _damaged(origin, "other bytes follow it")
    return text


def _parse(text: bytes, origin: str) -> dict[str, Any]:
    try:
        raw = json.loads(str(text, "utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(origin, f"it is no JSON ({error})") from error
    if not isinstance(raw, dict) or raw.get("format") != "panovlm-recipe":
        raise _damaged(origin, "it is no recipe of PanoVLM")
    if _deeper(raw, _MAX_DEPTH):
        raise _damaged(origin, f"it is nested deeper than {_MAX_DEPTH}")
    return raw


def _deeper(value: Any, levels: int) -> bool:
    """Tell whether plain data is nested deeper than some levels."""
    if not isinstance(value, dict | list):
        return False
    below = value.values() if isinstance(value, dict) else value
    return not levels or any(_deeper(item, levels - 1) for item in below)


def _damaged(origin: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{origin} is damaged: {what}. Copy the checkpoint again, or take the one before it. If "
        f"all tensors were computed anew, such as by averaging, put {_ELSEWHERE} in the place of "
        "this one."
    )
