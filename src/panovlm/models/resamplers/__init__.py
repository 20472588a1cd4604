"""The registry of resampler architectures: one folder each, one line each.

Other packages add theirs through the entry point group ``panovlm.resamplers``, whose values are
:class:`~panovlm.models.resamplers.recipe.ResamplerRecipe` subclasses.
"""

from __future__ import annotations

from functools import cache

from panovlm.config.problems import nearest
from panovlm.errors import ConfigError
from panovlm.models.resamplers.avg_pool.recipe import AvgPoolRecipe
from panovlm.models.resamplers.bimamba.recipe import BiMambaRecipe
from panovlm.models.resamplers.c_abstractor.recipe import CAbstractorRecipe
from panovlm.models.resamplers.conv.recipe import ConvRecipe
from panovlm.models.resamplers.identity.recipe import IdentityRecipe
from panovlm.models.resamplers.masked_drop.recipe import MaskedDropRecipe
from panovlm.models.resamplers.mlp.recipe import MLPRecipe
from panovlm.models.resamplers.perceiver.recipe import PerceiverRecipe
from panovlm.models.resamplers.plugins import plugins
from panovlm.models.resamplers.qformer.recipe import QFormerRecipe
from panovlm.models.resamplers.recipe import ResamplerRecipe, ResamplerSettings
from panovlm.models.resamplers.spatial_pool.recipe import SpatialPoolRecipe

__all__ = ["ResamplerRecipe", "ResamplerSettings", "recipe", "recipes"]

BUILT_IN: tuple[type[ResamplerRecipe], ...] = (
    MLPRecipe,
    BiMambaRecipe,
    QFormerRecipe,
    PerceiverRecipe,
    ConvRecipe,
    CAbstractorRecipe,
    IdentityRecipe,
    AvgPoolRecipe,
    SpatialPoolRecipe,
    MaskedDropRecipe,
)


@cache
def recipes() -> dict[str, ResamplerRecipe]:
    """Return every registered architecture by canonical name.

    Raises:
        ConfigError: two architectures claim one name or alias, or a package's cannot be imported.
    """
    found: dict[str, ResamplerRecipe] = {}
    taken: dict[str, str] = {}
    for cls in (*BUILT_IN, *plugins()):
        for spelling in (cls.name, *cls.aliases):
            if spelling in taken:
                raise ConfigError(
                    f"resampler name {spelling!r} is registered by both {taken[spelling]} and "
                    f"{cls.__module__}; uninstall one of the two packages."
                )
            taken[spelling] = cls.__module__
        found[cls.name] = cls()
    return found


def recipe(name: str) -> ResamplerRecipe:
    """Return the architecture called ``name`` (canonical or alias, any case).

    Raises:
        ConfigError: no architecture has that name; the nearest is suggested.
    """
    known, spelling = recipes(), name.lower()
    found = known.get(spelling) or next((r for r in known.values() if spelling in r.aliases), None)
    if found is None:
        near = nearest(spelling, [s for r in known.values() for s in (r.name, *r.aliases)])
        hint = f" Did you mean {near!r}?" if near else ""
        raise ConfigError(
            f"unknown resampler_type {name!r}; known: {', '.join(sorted(known))}; "
            f"others come with the package that defines them.{hint}"
        )
    return found
