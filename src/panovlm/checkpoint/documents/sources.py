"""Layer 1: what each document beside or inside a checkpoint claims about the model.

Every document is turned into dotted recipe fields here, whatever its age. Only values that it
states are claims; defaults are added later, where their origin can be told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from panovlm.checkpoint.documents import original
from panovlm.checkpoint.documents.adapter_config import base_model, lora_fields, read_adapter_config
from panovlm.checkpoint.documents.metadata import (
    EMBEDDED,
    CheckpointMetadata,
    is_ours,
    parse,
    read_json,
)
from panovlm.checkpoint.documents.recipe_record import ORIGIN, RecipeRecord
from panovlm.checkpoint.fields import flatten_stated
from panovlm.checkpoint.find.locate import ADAPTER_CONFIG, Location
from panovlm.checkpoint.formats import Header
from panovlm.config.legacy import original_run_mapping, translate
from panovlm.config.model_recipe import Layout, Recipe
from panovlm.config.problems import ValidationError, sentence
from panovlm.errors import CheckpointError


@dataclass(frozen=True)
class Claims:
    """What one document states.

    Attributes:
        origin: the document, for messages.
        values: dotted recipe field → plain value.
        assumed: fields that the document itself marks as assumed.
        inferred: fields that the document itself marks as read off the weights, and the evidence.
        closed: sections of the recipe in which the fields that it does not mention had their
            defaults for certain.
        document: the typed document, when it is one of this format.
        among_weights: whether it is what the weights keep of the settings.
    """

    origin: str
    values: Mapping[str, Any]
    assumed: frozenset[str] = frozenset()
    inferred: Mapping[str, str] = field(default_factory=dict[str, str])
    closed: frozenset[str] = frozenset()
    document: CheckpointMetadata | None = None
    among_weights: bool = False


@dataclass
class Documents:
    """All claims about one checkpoint, strongest first, and notes for the reader.

    Attributes:
        embedded: the document inside the file, also where a repaired sidecar took its place.
    """

    claims: list[Claims] = field(default_factory=list[Claims])
    notes: list[str] = field(default_factory=list[str])
    embedded: CheckpointMetadata | None = None


class DocumentReader:
    """Reads the documents of one checkpoint in the order of trust.

    The sidecar comes first, then the copy inside the file, then the hyper-parameters of the
    original system, then model and adapter configurations beside the file, then the run's
    ``config.yaml``, then what the weights keep of the settings. Where one of them says everything,
    ``config.yaml`` is not read. Adapters that join from a folder are described there before all.

    Args:
        location: the checkpoint and its companions.
        header: what the file says about itself.
        layout: family of checkpoints that it belongs to.
        resampler_type: architecture of the weights, for documents that name none.
        accept: tells whether a document of this format counts (it may belong to other weights).
        joined: whether the adapters of the folder beside it are put onto the weights.
        borrows: whether the language model's own weights are elsewhere; the adapters then name it.
        record: the settings that the weights keep.
    """

    def __init__(
        self,
        location: Location,
        header: Header,
        layout: Layout,
        *,
        resampler_type: str,
        accept: Callable[[CheckpointMetadata], bool],
        joined: bool = False,
        borrows: bool = False,
        record: RecipeRecord | None = None,
    ) -> None:
        self.location = location
        self.header = header
        self.layout: Layout = layout
        self.resampler_type = resampler_type
        self.accept = accept
        self.joined = joined
        self.borrows = borrows
        self.record = record
        self.found = Documents()

    def read(self) -> Documents:
        """Read every document.

        Raises:
            CheckpointError: a document cannot be read.
            ConfigError: ``config.yaml`` cannot be read.
        """
        if self.joined:  # the adapters' own record is nearer to them than the file's documents
            self._adapter_config()
        self._sidecar()
        self._embedded()
        self._hyper_parameters()
        complete = self._model_config()
        if not self.joined:
            self._adapter_config()
        described = complete or self.record is not None
        if not described and not any(claim.document for claim in self.found.claims):
            self._run_config()
        self._record()
        return self.found

    def _sidecar(self) -> None:
        path = self.location.sidecar
        if path is None:
            return
        raw, note = read_json(path)
        if note is None or not is_ours(raw):
            self.found.notes += [note] if note else []
            self._add_metadata(raw, path.name, str(path))
            if note is None and not is_ours(raw) and not self.found.claims[-1].values:
                self.found.notes.append(f"{path.name} says nothing about the model")
        elif EMBEDDED in self.header.extras:
            self.found.notes.append(f"{path.name} is cut off; the copy inside the file is used")
        else:
            # Its recipe would look complete, with defaults where the text is missing.
            raise CheckpointError(
                f"{path} is cut off; copy it anew, or remove it and run `panovlm add-metadata`."
            )

    def _embedded(self) -> None:
        text = self.header.extras.get(EMBEDDED)
        if text is None:
            return
        file = self.location.checkpoint.name
        place = f"the metadata inside {self.location.checkpoint}"
        raw = _json_object(
            str(text),
            place,
            "the file was damaged or edited; take another copy of it",
        )
        if is_ours(raw):
            self.found.embedded = parse(raw, place)
            self._note_another(self.found.embedded, file)
        amended = {claim.document.amends for claim in self.found.claims if claim.document}
        if self.found.embedded is not None and self.found.embedded.identity() in amended:
            return
        self._add_metadata(raw, f"metadata inside {file}", place)

    def _note_another(self, embedded: CheckpointMetadata, file: str) -> None:
        """Say if a document beside the file was written in another stage than the file."""
        for claim in self.found.claims:
            beside = claim.document
            if beside and beside.stage and embedded.stage and beside.stage != embedded.stage:
                self.found.notes.append(
                    f"{claim.origin} was written with another checkpoint, of stage {beside.stage!r}"
                    f"; {file} is of stage {embedded.stage!r}. What differs in the settings is a "
                    "conflict; what it says of the training does not count"
                )

    def _add_metadata(self, raw: Mapping[str, Any], origin: str, place: str) -> None:
        """Add a metadata document of either system; ``place`` names its file in errors."""
        if not is_ours(raw):
            self._add(origin, original.from_metadata(raw, self.resampler_type))
            return
        document = parse(raw, place)
        if not self.accept(document):
            self.found.notes.append(f"{origin} was written for other weights; it is left out")
            return
        claim = Claims(
            origin,
            flatten_stated(document.recipe),
            assumed=frozenset(document.assumed),
            inferred=document.inferred,
            document=document,
        )
        self.found.claims.append(claim)

    def _hyper_parameters(self) -> None:
        if isinstance(self.header.extras.get("hyper_parameters"), Mapping):
            values = original.from_hyper_parameters(self.header.extras, self.resampler_type)
            self._add("hyper_parameters inside the file", values)

    def _model_config(self) -> bool:
        """Add a model configuration in JSON; return whether it says everything."""
        path = self.location.model_config
        if path is None:
            return False
        raw = _read_object(path)
        if raw.get("model_type") == "panovlm":
            self.found.claims.append(Claims(path.name, _hugging_face_recipe(raw, path)))
            return True
        if original.is_model_config(raw):
            self._add(path.name, original.from_model_config(raw))
        return False

    def _adapter_config(self) -> None:
        """Add what PEFT recorded beside the adapters."""
        folder = self.location.adapters
        raw = read_adapter_config(folder) if folder else {}
        if folder and raw:
            values = lora_fields(raw)
            if self.borrows and base_model(raw):
                values["models.language_model_name"] = base_model(raw)
            self._add(f"{folder.name}/{ADAPTER_CONFIG}", values)

    def _run_config(self) -> None:
        """Add the run's ``config.yaml``."""
        path = self.location.config
        if path is None:
            return
        from panovlm.config.yaml_text import read_yaml  # most checkpoints have no need of YAML

        raw, _ = read_yaml(path)
        is_original = self.layout == "original"
        translated = original_run_mapping(raw) if is_original else translate(raw)
        today = None if is_original else self.resampler_type
        values = original.from_run_config(translated.mapping, today)
        closed = original.closed_sections(raw) if is_original else frozenset[str]()
        self.found.claims.append(Claims(path.name, values, closed=closed))
        self.found.notes += [f"{path.name}: {note}" for note in translated.notes]

    def _record(self) -> None:
        """Add the settings that the weights keep, unless a document was written to correct them."""
        documents = (claim.document for claim in self.found.claims)
        corrected = {document.amends_weights for document in documents if document}
        if self.record is None or self.record.identity() in corrected:
            return
        values = flatten_stated(self.record.recipe)
        if self.joined or not values["lora.use_lora"]:
            # Adapters that came later, or from elsewhere, are nothing that it could know of.
            values = {n: value for n, value in values.items() if not n.startswith("lora.")}
        claim = Claims(ORIGIN, values, frozenset(self.record.assumed), among_weights=True)
        self.found.claims.append(claim)

    def _add(self, origin: str, values: Mapping[str, Any]) -> None:
        self.found.claims.append(Claims(origin, values))


def _hugging_face_recipe(raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the recipe that ``save_pretrained`` wrote into ``config.json``."""
    recipe = original.section(raw, "recipe")
    backbones = {"vision_config": "vision_config", "language_config": "text_config"}
    models = {
        **original.section(recipe, "models"),
        **{ours: raw.get(theirs) for ours, theirs in backbones.items()},
    }
    try:
        return flatten_stated(Recipe.model_validate({**recipe, "models": models}))
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: recipe.{sentence(str(error.problems[0]))} The file was edited or is of "
            "another version; save the model again."
        ) from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not a text file; remove or repair it.") from error
    return _json_object(text, str(path), "remove or repair it")


def _json_object(text: str, what: str, mend: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{what} is not JSON ({error}); {mend}.") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{what} is no JSON object; {mend}.")
    return document
