"""What a resampler architecture declares about itself, without importing torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from panovlm.checkpoint.settle.shapes import Observations, Shapes
from panovlm.config.base import StrictModel
from panovlm.models.vision.grid import Grid, ViewGrid

if TYPE_CHECKING:
    from torch import nn

Observability = Literal["observable", "constrained", "unobservable"]
Argument = Literal["view", "num_views"]


@dataclass(frozen=True)
class Dialect:
    """How another implementation names the tensors of an architecture."""

    name: str
    names: Mapping[str, tuple[str, ...]]
    """Its name of a tensor → names in the network, of those that differ; several names where one
    tensor serves several places."""
    undecided: Mapping[str, str] = field(default_factory=dict[str, str])
    """Settings that must be stated for it, since it knows several values and shows none; each with
    the reason."""
    note: str = ""
    """What the reader should know."""


class ResamplerSettings(StrictModel):
    """Base of the settings of one resampler architecture.

    The defaults of a subclass *are* its preset: there is no second table.
    """


class ResamplerRecipe(ABC):
    """One resampler architecture: its settings, how to recognise it, how to build it.

    A resampler maps view tokens ``[B·V, S, Dv]`` to ``[B·V, S', D]`` with ``Dv`` the width of the
    vision tower and ``D`` the ``latent_dimension``. The widths ``Dv`` and ``D`` are no settings of
    the recipe: the tower and the projector decide them, and :meth:`infer` reports what it sees of
    them under the names ``vision_dim`` and ``latent_dimension``.
    """

    name: ClassVar[str]
    """Canonical value of ``models.resampler_type``."""
    aliases: ClassVar[tuple[str, ...]] = ()
    """Other accepted spellings, translated once when a configuration is read."""
    settings: ClassVar[type[ResamplerSettings]]
    """Settings class of this architecture."""
    has: ClassVar[tuple[str, ...]]
    """Names below the resampler that every checkpoint of this architecture holds."""
    lacks: ClassVar[tuple[str, ...]] = ()
    """Names that no checkpoint of this architecture holds."""
    observability: ClassVar[dict[str, Observability]]
    """For every field of ``settings``: whether shapes show it."""
    training_only: ClassVar[frozenset[str]] = frozenset()
    """Fields that change training, never what a loaded model computes."""
    divides: ClassVar[dict[str, str]] = {}
    """Constrained field → the width that it divides: ``vision_dim``, or a field of ``settings``."""
    takes: ClassVar[tuple[Argument, ...]] = ()
    """What the network's ``forward`` takes besides the tokens: ``view``, the
    :class:`~panovlm.models.vision.grid.ViewGrid` of each view's tokens, and ``num_views``, how many
    views that follow each other round a closed loop make one sample."""
    keeps_tokens: ClassVar[bool] = False
    """Whether every token of the tower leaves as one token, in its place."""

    def grid(self, settings: ResamplerSettings, view: ViewGrid) -> Grid | None:
        """Return the rows and columns of the tokens that leave the resampler.

        Positions, stitching, the overlap loss and the token budget follow it. ``None``: they are
        laid out as their number tells, a square if possible. Only architectures that take
        ``view`` are asked.

        Args:
            settings: settings of this architecture.
            view: the tokens of one view that enter.

        Raises:
            ConfigError: the settings do not fit that view.
        """
        return None

    def crosses_views(self, settings: ResamplerSettings) -> bool:
        """Tell whether the tokens of a view depend on the other views of its sample."""
        return False

    def missing(self, shapes: Shapes) -> list[str]:
        """Return why ``shapes`` is not of this architecture (empty: it is)."""
        absent = [f"{name} is absent" for name in self.has if name not in shapes]
        return absent + [f"{name} is present" for name in self.lacks if name in shapes]

    def dialect(self, names: Sequence[str]) -> Dialect | None:
        """Recognise the names that another implementation gives the tensors of this architecture.

        It is asked where no architecture claims the names as they are. Architectures that have
        other spellings override this.

        Args:
            names: names below the resampler.

        Raises:
            CheckpointError: the other implementation computes what this one cannot.
        """
        return None

    @abstractmethod
    def infer(self, shapes: Shapes) -> Observations:
        """Read the observable settings off the shapes below the resampler.

        Returns only what was observed, never a default; besides settings it reports
        ``vision_dim`` and ``latent_dimension``.

        Raises:
            ContradictionError: the tensors do not fit together.
        """

    def agrees(self, field: str, claimed: Any, seen: Observations) -> bool:
        """Tell whether a claimed value of ``field`` can be true of the observed weights.

        Architectures override this where several values give the same shapes.
        """
        return bool(claimed == seen[field].value)

    @abstractmethod
    def build(
        self, settings: ResamplerSettings, *, vision_dim: int, latent_dimension: int
    ) -> nn.Module:
        """Build the network (this is the only place that imports torch).

        Raises:
            ConfigError: the settings cannot be built for these widths.
        """
