"""The fields of a recipe, flat: dotted names, which of them shapes can tell, which matter when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from panovlm.config.base import FieldInfo, StrictModel
from panovlm.config.fields import block_at
from panovlm.config.model_recipe import RESAMPLER_CONFIGS, Recipe
from panovlm.config.problems import ValidationError, nearest
from panovlm.errors import ConfigError
from panovlm.models.resamplers import recipes

Value = TypeVar("Value")

RESAMPLER = "models.resampler_config"

TRAINING_ONLY = frozenset(
    {
        "models.vicreg_loss_weight",
        "models.vicreg_similarity_weight",
        "models.vicreg_variance_weight",
        "models.vicreg_covariance_weight",
        "models.vicreg_gamma",
        "models.vicreg_mode",
        "models.overlap_loss",
        "models.overlap_pairs",
        "models.overlap_temperature",
        "models.overlap_dense_weight",
        "models.overlap_redundancy_weight",
        "models.overlap_gather",
        "models.vicreg_projector_dim",
        "models.vicreg_projector_hidden",
        "models.vicreg_projector_depth",
        "models.vicreg_projector_ln",
        "models.pe_dropout",
        "models.training_placeholder",
        "models.max_text_length",
        "lora.dropout",
        *(f"{RESAMPLER}.{name}" for found in recipes().values() for name in found.training_only),
    }
)
"""Fields that change training, never what a loaded model computes."""

_CROP = "image_processing.crop_strategy"
_POSITIONS = "models.pe_type"
_PROCESSOR = "image_processing.use_vision_processor"
_ANYRES = frozenset({"anyres", "anyres_max", "anyres_e2p"})
_SMOOTH = frozenset(
    {"e2p", "cubemap", "resize", "anyres_e2p", "e2p_sphere", "cubemap6", "icosahedral", "erp"}
)
_STEPS = frozenset({"e2p", "sliding_window", "anyres_e2p", "e2p_sphere"})

BEARING: tuple[tuple[str, str, frozenset[Any]], ...] = (
    ("models.pe_", "models.use_projection_positional_encoding", frozenset({True})),
    ("models.pe_spatial_encoding_type", _POSITIONS, frozenset({"columns"})),
    ("models.pe_enable_continuity", _POSITIONS, frozenset({"columns"})),
    ("models.pe_temperature", _POSITIONS, frozenset({"columns"})),
    ("models.pe_highest_frequency", _POSITIONS, frozenset({"directions"})),
    ("models.stitch_", "models.stitching_mode", frozenset({"resample"})),
    ("models.global_view", _CROP, _ANYRES),
    (
        "models.vision_token_fallback_ends",  # rows begin with text
        "models.vision_token_fallback_position",
        frozenset({"suffix"}),
    ),
    ("image_processing.fov_deg", _CROP, _ANYRES | _STEPS | {"icosahedral"}),
    ("image_processing.overlap_ratio", _CROP, _STEPS),
    ("image_processing.pitch_rows", _CROP, frozenset({"e2p_sphere"})),
    ("image_processing.poles", _CROP, frozenset({"e2p_sphere"})),
    ("image_processing.icosahedral_views", _CROP, frozenset({"icosahedral"})),
    ("image_processing.anyres_patch_size", _CROP, frozenset({"anyres_e2p"})),
    ("image_processing.anyres_patch_size", _PROCESSOR, frozenset({True})),
    ("image_processing.anyres_max_patches", _CROP, frozenset({"anyres", "anyres_max"})),
    ("image_processing.rendering", _CROP, _SMOOTH),
    ("image_processing.rendering", _PROCESSOR, frozenset({False})),
    ("image_processing.normalize", _PROCESSOR, frozenset({False})),
    ("image_processing.image_mean", _PROCESSOR, frozenset({False})),
    ("image_processing.image_std", _PROCESSOR, frozenset({False})),
    ("image_processing.image_mean", "image_processing.normalize", frozenset({True})),
    ("image_processing.image_std", "image_processing.normalize", frozenset({True})),
)
"""Fields (or beginnings of their names) that decide something only where another field has one of
some values."""


ADDED = frozenset(
    {
        "models.fusion_text_limit",
        "models.vision_token_fallback_ends",
        "models.pe_type",
        "models.vision_rope",
        "models.language_quantization",
        "models.resampler_config.cross_view",
        "image_processing.rendering",
        "lora.use_dora",
    }
)
"""Fields that documents of the present schema version had not from the beginning."""


def bears(name: str, values: Mapping[str, Any]) -> bool:
    """Tell whether a field decides what a loaded model computes, given the other fields.

    Args:
        name: dotted field.
        values: every field of the recipe by dotted name.
    """
    section = name.split(".")[0]
    if name in TRAINING_ONLY or section == "generation":
        return False
    if section == "lora" and not values["lora.use_lora"]:
        return False
    if name == "image_processing.vision_processor" and not values[_PROCESSOR]:
        # Only its statistics count then, where there are no others.
        own = (values[f"image_processing.image_{what}"] for what in ("mean", "std"))
        return values["image_processing.normalize"] and not all(own)
    return all(
        values[other] in wanted
        for beginning, other, wanted in BEARING
        if name.startswith(beginning)
    )


def flatten(recipe: Recipe) -> dict[str, Any]:
    """Return every leaf of a recipe by dotted name, as plain values."""
    return dict(_leaves(recipe.model_dump(mode="json"), recipe))


def flatten_stated(recipe: Recipe) -> dict[str, Any]:
    """Return the leaves that were given when a recipe was typed, and no defaults in between.

    Fields of :data:`ADDED` count as given: their defaults are what was computed without them.
    """
    stated = dict(_leaves(recipe.model_dump(mode="json", exclude_unset=True), recipe))
    return {n: value for n, value in flatten(recipe).items() if n in stated or n in ADDED}


def defaults(resampler_type: str) -> dict[str, Any]:
    """Return the default of every field, with the preset of ``resampler_type``."""
    models = {
        "resampler_type": resampler_type,
        "resampler_config": RESAMPLER_CONFIGS[resampler_type],
    }
    return flatten(Recipe.model_validate({"models": models}))


def typed(name: str, value: Any, resampler_type: str) -> Any:
    """Return a stated value as the type of its field.

    Hand-written documents have ``"64"`` or ``no`` where 64 and false are meant. What the field
    cannot hold is returned as it is; it is reported when the whole recipe is typed.

    Args:
        name: dotted field.
        value: what a document states.
        resampler_type: canonical architecture, for the fields of ``resampler_config``.
    """
    info = _info(name, resampler_type)
    try:
        return info.read(value) if info else value
    except ValidationError:
        return value


def may_be_unset(name: str, resampler_type: str) -> bool:
    """Tell whether "unset" is a value of a field.

    A backbone's configuration that is unset is only told elsewhere.
    """
    told_elsewhere = name in ("models.vision_config", "models.language_config")
    info = None if told_elsewhere else _info(name, resampler_type)
    try:
        return info is not None and info.read(None) is None
    except ValidationError:
        return False


def _info(name: str, resampler_type: str) -> FieldInfo | None:
    """Return the description of a field, ``None`` when the recipe has no such field."""
    *path, leaf = name.split(".")
    block = block_at(Recipe, tuple(path), {"models": {"resampler_type": resampler_type}})
    return block.model_fields.get(leaf) if block else None


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Undo :func:`flatten`: dotted names to nested dictionaries."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *path, leaf = name.split(".")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place[leaf] = value
    return nested


def flatten_mapping(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return the explicit leaves of a nested recipe mapping by dotted name.

    Sections that are no part of a recipe (training, data, ...) are left out.
    """
    flat: dict[str, Any] = {}
    for section in Recipe.model_fields:
        values = mapping.get(section)
        if not isinstance(values, Mapping):
            continue
        for key, value in values.items():
            if key == "resampler_config" and isinstance(value, Mapping):
                flat.update({f"{RESAMPLER}.{k}": v for k, v in value.items()})
            else:
                flat[f"{section}.{key}"] = value
    return flat


def _leaves(values: Mapping[str, Any], model: StrictModel) -> Iterator[tuple[str, Any]]:
    """Walk settings along their classes, so that dictionary-valued fields stay whole."""
    for name in (name for name in type(model).model_fields if name in values):
        child = getattr(model, name)
        if isinstance(child, StrictModel):
            for below, value in _leaves(values[name], child):
                yield f"{name}.{below}", value
        else:
            yield name, values[name]


class FieldMap(Mapping[str, Value]):
    """Values by dotted field name; a last part alone is enough where it is unambiguous.

    ``sources["hidden_dim"]`` finds ``models.resampler_config.hidden_dim``.
    """

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = dict(values)

    def full_name(self, name: str) -> str:
        """Return the one dotted field that ``name`` means.

        Raises:
            ConfigError: none or several fields end so.
        """
        if name in self._values:
            return name
        found = [field for field in self._values if field.endswith("." + name)]
        in_models = [field for field in found if field.startswith("models.")]
        if len(found) > 1 and len(in_models) == 1:
            found = in_models
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(f"field {name!r} is ambiguous: {', '.join(sorted(found))}.")
        near = nearest(name, self._values, cutoff=0.4)
        hint = f" Did you mean {near}?" if near else ""
        raise ConfigError(f"there is no field {name!r}.{hint}")

    def __getitem__(self, name: str) -> Value:
        try:
            return self._values[self.full_name(name)]
        except ConfigError as error:
            raise KeyError(str(error)) from error

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and bool(self.full_name(name))
        except ConfigError:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
