"""The few values that a setting without trace in any shape usually has.

They name the likely culprits when a probe differs, and they are what ``panovlm repair --solve``
tries. No torch is needed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from panovlm.checkpoint.fields import RESAMPLER, TRAINING_ONLY
from panovlm.checkpoint.probe.reach import parts_reached
from panovlm.checkpoint.probe.record import Part
from panovlm.checkpoint.settle.settling import plain
from panovlm.config.schema import DEFAULT_SYSTEM_MESSAGE, ImageProcessing, ModelSettings
from panovlm.models.resamplers import recipe as resampler_recipe

TOWER, LANGUAGE = "models.vision_config", "models.language_config"
OVERLAPS = (0.0, 0.1, 0.2, 0.25, 0.3, 1 / 3, 0.4, 0.5, 0.6, 2 / 3, 0.75)
ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "quick_gelu", "silu", "relu")
EPSILONS = (1e-5, 1e-6, 1e-8, 1e-12)
BASES = (1e4, 1e5, 2.5e5, 5e5, 1e6, 5e6, 1e7)
NARROWEST_HEAD = 4
IMAGE_STATISTICS: Mapping[str, tuple[Any, Any]] = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CLIP": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "SigLIP": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
VALUES: Mapping[str, tuple[Any, ...]] = {
    "models.overlap_ratio": OVERLAPS,
    "models.pe_temperature": (100.0, 1000.0, 10000.0, 100000.0, 1000000.0),
    # "stride_views" is another name of "drop_overlap".
    "models.stitching_mode": ("drop_overlap", "concat", "resample", "sphere"),
    "models.pe_highest_frequency": (4.0, 8.0, 16.0, 32.0, 64.0),
    "image_processing.overlap_ratio": OVERLAPS,
    "image_processing.fov_deg": (45.0, 60.0, 65.0, 70.0, 75.0, 80.0, 90.0, 100.0, 110.0, 120.0),
    "image_processing.pitch_rows": (1, 2, 3),
    "image_processing.anyres_patch_size": (224, 256, 336, 378, 384, 448, 512),
    "image_processing.anyres_max_patches": (4, 6, 8, 9, 10, 12, 16),
    "system_messages.default": (DEFAULT_SYSTEM_MESSAGE, ""),
    "models.default_generation_prompt": (
        ModelSettings.model_fields["default_generation_prompt"].default,
    ),
}
"""Values of fields whose type does not list them."""


@dataclass(frozen=True)
class Candidate:
    """One change of a recipe that no shape shows.

    Attributes:
        changes: dotted fields and the values to try, several where they only change together.
        sketch: which sketch of the part shows it best.
    """

    changes: Mapping[str, Any]
    sketch: str = "output"

    def __str__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.changes.items())


def candidates(
    part: Part, values: Mapping[str, Any], observed: Mapping[str, Any]
) -> list[Candidate]:
    """Return what may be otherwise in a recipe when one part of its probe differs.

    Args:
        part: the part.
        values: every field of the recipe by dotted name.
        observed: fields that shapes show, which are no candidates.
    """
    found = [
        candidate
        for candidate in _all(values, observed)
        if part in {reached for name in candidate.changes for reached in parts_reached(name)}
        and not any(name in observed for name in candidate.changes)
        and not all(_is(values, name, value) for name, value in candidate.changes.items())
    ]
    return list({str(candidate): candidate for candidate in found}.values())


def _all(values: Mapping[str, Any], observed: Mapping[str, Any]) -> Iterator[Candidate]:
    yield from _backbone(TOWER, values[TOWER] or {})
    yield from _backbone(LANGUAGE, values[LANGUAGE] or {})
    yield from _resampler(values)
    yield from _listed(values)
    yield from _image_statistics(values)
    if values["lora.use_lora"]:
        rank = values["lora.rank"]
        for alpha in sorted({rank / 2, rank, 2 * rank, 4 * rank, 8, 16, 32, 64, 128}):
            yield Candidate({"lora.alpha": alpha})


def _backbone(section: str, config: Mapping[str, Any]) -> Iterator[Candidate]:
    """Yield other heads, activations, eps and rotary bases of a backbone."""
    yield from _heads(section, config)
    for key in config:
        if key.endswith("_act") or key in ("hidden_activation", "activation_function"):
            yield from (Candidate({f"{section}.{key}": v}, "activations") for v in ACTIVATIONS)
        elif key.endswith("_eps"):
            yield from (Candidate({f"{section}.{key}": v}, "norms") for v in EPSILONS)
        elif key == "rope_parameters" and isinstance(config[key], Mapping):
            for base in BASES:
                changed = {**config[key], "rope_theta": base}
                yield Candidate({f"{section}.{key}": changed}, "frequencies")
        elif key == "rope_theta":
            yield from (Candidate({f"{section}.{key}": base}, "frequencies") for base in BASES)


def _heads(section: str, config: Mapping[str, Any]) -> Iterator[Candidate]:
    """Yield the numbers of heads that give the same shapes."""
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if not isinstance(heads, int) or not isinstance(width, int):
        return
    groups = config.get("num_key_value_heads")
    if isinstance(groups, int):
        stated = config.get("head_dim")  # some families leave it out where it follows
        head_dim = stated if isinstance(stated, int) else width // heads
        rows, key_rows = heads * head_dim, groups * head_dim
        for size in _divisors(key_rows):
            if size % 2:  # rotary positions turn pairs of channels
                continue
            changed = {
                "num_attention_heads": rows // size,
                "num_key_value_heads": key_rows // size,
                "head_dim": size,
            }
            yield Candidate({f"{section}.{key}": value for key, value in changed.items()})
    else:
        for count in (width // size for size in _divisors(width)):
            yield Candidate({f"{section}.num_attention_heads": count})


def _resampler(values: Mapping[str, Any]) -> Iterator[Candidate]:
    """Yield other values of what the resampler's shapes do not show."""
    architecture = resampler_recipe(str(values["models.resampler_type"]))
    widths = {**values, f"{RESAMPLER}.vision_dim": (values[TOWER] or {}).get("hidden_size")}
    for key, how in architecture.observability.items():
        name = f"{RESAMPLER}.{key}"
        if how == "observable" or name in TRAINING_ONLY:
            continue
        listed = _choices(architecture.settings.model_fields[key].annotation)
        width = widths.get(f"{RESAMPLER}.{architecture.divides.get(key)}")
        if not listed and isinstance(width, int):
            listed = tuple(width // size for size in _divisors(width))
        yield from (Candidate({name: value}) for value in listed)


def _listed(values: Mapping[str, Any]) -> Iterator[Candidate]:
    """Yield other values of the fields about views, positions, stitching and texts."""
    for section, model in (("models", ModelSettings), ("image_processing", ImageProcessing)):
        for key, field in model.model_fields.items():
            name = f"{section}.{key}"
            choices = VALUES.get(name) or _choices(field.annotation)
            yield from (_shown(name, choice) for choice in choices)
    yield from (
        Candidate({"system_messages.default": text}) for text in VALUES["system_messages.default"]
    )


def _shown(name: str, value: Any) -> Candidate:
    """Return a candidate about one field, with the sketch that shows it."""
    sketch = "pictures" if name.startswith("image_processing.") else "output"
    return Candidate({name: value}, "values" if name == "image_processing.normalize" else sketch)


def _image_statistics(values: Mapping[str, Any]) -> Iterator[Candidate]:
    """Yield the means and deviations of the usual towers."""
    unset = values["image_processing.image_mean"] is None
    processor = values["image_processing.vision_processor"]
    for name, (mean, deviation) in IMAGE_STATISTICS.items():
        if name == "ImageNet" and unset and processor is None:  # what unset means
            continue
        changes = {"image_processing.image_mean": mean, "image_processing.image_std": deviation}
        yield Candidate(changes, "values")


def _choices(annotation: Any) -> tuple[Any, ...]:
    """Return the values of a type that lists them."""
    if annotation is bool:
        return (True, False)
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _divisors(width: int) -> list[int]:
    """Return the widths that a head may have."""
    return [n for n in range(NARROWEST_HEAD, width + 1) if width % n == 0]


def _is(values: Mapping[str, Any], name: str, value: Any) -> bool:
    """Tell whether a field, or one key of a backbone's configuration, has a value."""
    return plain(value_of(values, name)) == plain(value)


def value_of(values: Mapping[str, Any], name: str) -> Any:
    """Return a field of a flat recipe, or one key of a backbone's configuration in it."""
    for section in (TOWER, LANGUAGE):
        if name.startswith(f"{section}."):
            return (values[section] or {}).get(name.removeprefix(f"{section}."))
    return values[name]
