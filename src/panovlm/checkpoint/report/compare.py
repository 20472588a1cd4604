"""What tells two checkpoints apart, from their headers and documents alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from panovlm.checkpoint.documents.document import document
from panovlm.checkpoint.documents.metadata import OUTPUT_LAYERS
from panovlm.checkpoint.documents.recipe_record import LABELS
from panovlm.checkpoint.documents.tokenizer_digests import tokenizer_digests
from panovlm.checkpoint.fields import bears, flatten
from panovlm.checkpoint.formats import TensorInfo
from panovlm.checkpoint.names.keymap import MARKERS
from panovlm.checkpoint.report.explain import field_source, field_values
from panovlm.checkpoint.resolution import Resolution
from panovlm.checkpoint.settle.backbones import BACKBONES
from panovlm.checkpoint.settle.settling import plain
from panovlm.errors import ConfigError

ABSENT = "not stated"
"""Source of a field that one side does not have."""


@dataclass(frozen=True)
class Change:
    """One setting that differs.

    Attributes:
        values: in the one and in the other checkpoint.
        sources: where each came from; :data:`ABSENT` where a side does not have it.
        bearing: whether it decides what one of the loaded models computes.
    """

    field: str
    values: tuple[Any, Any]
    sources: tuple[str, str]
    bearing: bool


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints side by side. Differences are computed when they are asked for."""

    one: Resolution
    other: Resolution

    @cached_property
    def settings(self) -> tuple[Change, ...]:
        """Settings with different values, those that matter for the loaded model first."""
        return tuple(sorted(self._changes(), key=lambda change: (not change.bearing, change.field)))

    @cached_property
    def only(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of tensors that only the one, and only the other has.

        The output layer of a language model that is tied to the token embeddings is no tensor of
        its own; some formats store it twice.
        """
        first, second = self._tensors
        tied = all(map(_ties_output, (self.one, self.other)))
        counted = [n for n in {**first, **second} if not (tied and n.endswith(OUTPUT_LAYERS))]
        return (
            tuple(name for name in counted if name not in second),
            tuple(name for name in counted if name not in first),
        )

    @cached_property
    def shared(self) -> tuple[str, ...]:
        """Names of tensors that both have, with equal shapes."""
        first, second = self._tensors
        return tuple(n for n in first if n in second and first[n].shape == second[n].shape)

    @cached_property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Shapes of the tensors that both have with different ones."""
        first, second = self._tensors
        common = (name for name in first if name in second)
        pairs = {name: (first[name].shape, second[name].shape) for name in common}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    @cached_property
    def dtypes(self) -> dict[str, tuple[str, str]]:
        """Types of the tensors that both have in different ones."""
        first, second = self._tensors
        common = (name for name in first if name in second)
        pairs = {name: (first[name].dtype, second[name].dtype) for name in common}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    @cached_property
    def tokenizers(self) -> dict[str, tuple[str, str]]:
        """Digests of tokenizer files that differ (empty: one side does not carry the file)."""
        first, second = tokenizer_digests(self.one), tokenizer_digests(self.other)
        pairs = {n: (first.get(n, ""), second.get(n, "")) for n in sorted({*first, *second})}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    @cached_property
    def digests(self) -> dict[str, tuple[str, str]]:
        """Digests of both sides: of names and shapes, and of the document that describes it."""
        documents = document(self.one), document(self.other)
        return {
            "names and shapes": (documents[0].fingerprint, documents[1].fingerprint),
            "document": (documents[0].digest(), documents[1].digest()),
        }

    @property
    def same(self) -> bool:
        """Whether nothing differs but, possibly, the values of the weights and the step."""
        found = (self.settings, *self.only, self.shapes, self.dtypes, self.tokenizers)
        return not any(found)

    @cached_property
    def _tensors(self) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
        return _by_name(self.one), _by_name(self.other)

    def _changes(self) -> Iterator[Change]:
        sides = (self.one, self.other)
        stated = tuple(field_values(side) for side in sides)
        values = tuple(map(_leaves, stated))
        if any(_is_of_backbone(name) for name in values[0].keys() ^ values[1].keys()):
            # What one side states, the other may have by transformers' defaults.
            values = tuple(
                _leaves(known | _spelled_out(side))
                for side, known in zip(sides, stated, strict=True)
            )
        flat = tuple(flatten(side.config) for side in sides)
        for name in sorted({*values[0], *values[1]}):
            pair = values[0].get(name), values[1].get(name)
            if name in values[0] and name in values[1] and plain(pair[0]) == plain(pair[1]):
                continue
            told = [
                _source(side, name, known, given)
                for side, known, given in zip(sides, values, stated, strict=True)
            ]
            bearing = any(
                name in known and bears(name, settings)
                for known, settings in zip(values, flat, strict=True)
            )
            yield Change(name, pair, (told[0], told[1]), bearing)


def _is_of_backbone(name: str) -> bool:
    return name.rpartition(".")[0] in BACKBONES


def _spelled_out(resolution: Resolution) -> dict[str, Any]:
    """Return every field of both backbones' configurations, those of their classes included.

    Empty where that cannot be known: transformers is not there, or a configuration is not.
    """
    try:
        from panovlm.models.configuration import PanoramaVLMConfig

        models = PanoramaVLMConfig(resolution.config).typed_recipe().models
    except (ImportError, ConfigError):
        return {}
    configs = {section: getattr(models, section.rpartition(".")[2]) for section in BACKBONES}
    return {f"{at}.{key}": value for at, found in configs.items() for key, value in found.items()}


def _source(
    resolution: Resolution, name: str, values: Mapping[str, Any], stated: Mapping[str, Any]
) -> str:
    if name not in values:
        return ABSENT
    if name not in stated:
        return "default of transformers"
    assumed = "ASSUMED " if name in resolution.assumed else ""
    return f"{assumed}{field_source(resolution, name)}"


def _ties_output(resolution: Resolution) -> bool:
    """Tell whether the language model's output layer is its table of token embeddings."""
    config = resolution.config.models.language_config or {}
    return bool(config.get("tie_word_embeddings"))


def _by_name(resolution: Resolution) -> dict[str, TensorInfo]:
    """Return a checkpoint's tensors under the model's own names."""
    tensors, keys = resolution.header.tensors, resolution.keys
    own = {name: tensors[file] for name, file in keys.files.items() if name not in MARKERS}
    return own | {stored: tensors[stored] for stored in keys.unknown}


def _leaves(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out whole configurations, whose fields stand there too, and mere labels in them."""
    return {
        name: value
        for name, value in values.items()
        if name not in BACKBONES and name.rpartition(".")[2] not in LABELS
    }
