"""Checks that a resampler keeps the rules on which loading its checkpoints rests.

For the tests of a package that adds one; the built-in ones have to pass them as well.
"""

from __future__ import annotations

import torch

from panovlm.checkpoint.settle.shapes import Shapes
from panovlm.errors import ConfigError
from panovlm.models.resamplers import recipes
from panovlm.models.resamplers.recipe import ResamplerRecipe, ResamplerSettings

PREFIX = "resampler_module.resampler."
WIDTHS = ("vision_dim", "latent_dimension")

Shape = tuple[int, ...]


def check_recipe(
    recipe: ResamplerRecipe,
    *variants: ResamplerSettings,
    vision_dim: int = 24,
    latent_dimension: int = 16,
) -> None:
    """Check one architecture with its preset and some other settings; no weight takes memory.

    Checked are: every setting says whether shapes show it; this architecture and no other claims
    its tensors; what it reads off them is what they were built with, and builds the same again;
    settings that it declares unobservable leave every shape alone.

    Args:
        recipe: the architecture; it need not be registered.
        variants: settings that differ from the preset, in the observable fields above all.
        vision_dim: width Dv to build with.
        latent_dimension: width D to build with.

    Raises:
        ConfigError: a rule is broken; the message names it.
    """
    _require(
        recipe.observability.keys() == recipe.settings.model_fields.keys(),
        f"observability names {sorted(recipe.observability)}, but the settings are "
        f"{sorted(recipe.settings.model_fields)}",
    )
    for chosen in (recipe.settings(), *variants):
        shapes = _shapes(recipe, chosen, vision_dim, latent_dimension)
        _check_claim(recipe, chosen, shapes)
        _check_inference(recipe, chosen, shapes, (vision_dim, latent_dimension))
        _check_hidden(recipe, chosen, shapes, (vision_dim, latent_dimension))


def _shapes(
    recipe: ResamplerRecipe, chosen: ResamplerSettings, vision_dim: int, latent_dimension: int
) -> dict[str, Shape]:
    """Return the shapes of a build, under the names of a checkpoint."""
    with torch.device("meta"):
        network = recipe.build(chosen, vision_dim=vision_dim, latent_dimension=latent_dimension)
    return {PREFIX + name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _check_claim(
    recipe: ResamplerRecipe, chosen: ResamplerSettings, shapes: dict[str, Shape]
) -> None:
    missing = recipe.missing(Shapes(shapes, PREFIX))
    _require(not missing, f"with {chosen!r} it does not claim its own tensors: {missing}")
    others = [other for name, other in recipes().items() if name != recipe.name]
    rivals = [other.name for other in others if not other.missing(Shapes(shapes, PREFIX))]
    _require(not rivals, f"with {chosen!r} its tensors are claimed by {rivals}, too")


def _check_inference(
    recipe: ResamplerRecipe,
    chosen: ResamplerSettings,
    shapes: dict[str, Shape],
    widths: tuple[int, int],
) -> None:
    seen = recipe.infer(Shapes(shapes, PREFIX))
    for name, width in zip(WIDTHS, widths, strict=True):
        _require(name in seen and seen[name].value == width, f"{name} {width} was not read back")
    fields = [name for name in seen if name not in WIDTHS]
    for name in fields:
        told, built = seen[name], getattr(chosen, name)
        kind = recipe.observability.get(name)
        _require(kind == "observable", f"infer returns {name}, which is declared {kind}")
        _require(recipe.agrees(name, built, seen), f"{name} {built!r} came back as {told.value!r}")
        _require(bool(told.evidence), f"infer returns {name} without having looked at a shape")
    described = chosen.model_copy(update={name: seen[name].value for name in fields})
    again = _shapes(recipe, described, *widths)
    _require(again == shapes, f"{described!r}, read off its shapes, builds other shapes")


def _check_hidden(
    recipe: ResamplerRecipe,
    chosen: ResamplerSettings,
    shapes: dict[str, Shape],
    widths: tuple[int, int],
) -> None:
    preset = recipe.settings()
    for name, kind in recipe.observability.items():
        if kind != "observable":
            other = chosen.model_copy(update={name: getattr(preset, name)})
            same = _shapes(recipe, other, *widths) == shapes
            _require(same, f"{name} is declared {kind}, but changes a shape")


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise ConfigError(f"the resampler breaks a rule of the registry: {fault}.")
