"""What architectures without weights have in common; no torch is imported here.

A network without weights would leave no trace in a file. Its module holds *marks* instead: constant
buffers whose names and shapes tell what it is. One has the name of the architecture and an entry
per channel, and there is one for every setting that shapes shall show.
"""

from __future__ import annotations

from panovlm.checkpoint.settle.shapes import Observations, Shapes
from panovlm.errors import ConfigError, ContradictionError
from panovlm.models.resamplers.recipe import ResamplerRecipe


class WeightlessRecipe(ResamplerRecipe):
    """Base of the architectures without weights, which cannot change the width of tokens."""

    def infer(self, shapes: Shapes) -> Observations:
        """See :meth:`ResamplerRecipe.infer`; subclasses add what further marks show."""
        seen = Observations(shapes)
        for width in ("vision_dim", "latent_dimension"):
            seen.add(width, shapes.dim(self.name, 0))
        channels = seen["vision_dim"].value
        if channels < 1:
            raise ContradictionError(
                f"{shapes.prefix}{self.name} is empty; this file holds no weights of the "
                "resampler. Sharded training leaves such shells: convert the directory with the "
                "shards."
            )
        shapes.require(self.name, (channels,), "one entry per channel")
        return seen

    def check_widths(self, vision_dim: int, latent_dimension: int) -> None:
        """Check that the width of tokens stays.

        Raises:
            ConfigError: it would have to change.
        """
        if vision_dim != latent_dimension:
            raise ConfigError(
                f"the resampler {self.name!r} has no weights and leaves tokens as wide as the "
                f"vision tower makes them, {vision_dim}, but models.latent_dimension is "
                f"{latent_dimension}; set models.latent_dimension: {vision_dim}."
            )
