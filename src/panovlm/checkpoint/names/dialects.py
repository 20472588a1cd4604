"""Names that other implementations of a resampler give its tensors.

An architecture may know them (:meth:`ResamplerRecipe.dialect`). It is asked only about tensors
that no architecture claims as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from panovlm.checkpoint.settle.shapes import Shapes
from panovlm.models.resamplers import recipes
from panovlm.models.resamplers.recipe import Dialect


def resampler_dialect(names: Sequence[str]) -> Dialect | None:
    """Return the dialect of the names below a resampler; ``None``: today's, or an unknown one.

    Raises:
        CheckpointError: a dialect was recognised that computes what the architecture cannot.
    """
    if not names or _claimed(names):
        return None
    for recipe in recipes().values():
        found = recipe.dialect(names)
        if found is not None:
            today = [one for name in names for one in found.names.get(name, (name,))]
            if _claimed(today):
                return found
    return None


def _claimed(names: Iterable[str]) -> bool:
    """Tell whether an architecture claims tensors of these names."""
    shapes = Shapes(dict.fromkeys(names, ()))
    return any(not recipe.missing(shapes) for recipe in recipes().values())
