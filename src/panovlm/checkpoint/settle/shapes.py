"""The vocabulary of shape inference: a shape map that remembers what was read.

An inference rule looks at shapes only through :class:`Shapes`. Every look is recorded, and
:class:`Observations` attaches the looks made since the last field to the next one, so that the
provenance of an inferred value ("from ``input_proj.weight[0]``") cannot be forgotten or invented.
No torch is needed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from panovlm.errors import ContradictionError


@dataclass(frozen=True)
class Observed:
    """A value read off the weights, and the reads it came from."""

    value: Any
    evidence: str


class Shapes(Mapping[str, tuple[int, ...]]):
    """Read-only ``{name: shape}`` of one subtree of a checkpoint.

    Args:
        shapes: full names to shapes, never modified.
        prefix: subtree that this object shows, such as ``"resampler_module.resampler."``;
            names are given without it.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> None:
        self._shapes = shapes
        self.prefix = prefix
        self._reads: list[str] = []

    def under(self, prefix: str) -> Shapes:
        """Return the subtree below ``prefix``; its reads are recorded separately."""
        return Shapes(self._shapes, self.prefix + prefix)

    def __getitem__(self, name: str) -> tuple[int, ...]:
        """Return the whole shape of ``name`` and record the read."""
        shape = self._shapes[self.prefix + name]
        self._reads.append(self.prefix + name)
        return shape

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.prefix + name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return (k[len(self.prefix) :] for k in self._shapes if k.startswith(self.prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def dim(self, name: str, axis: int) -> int:
        """Return one dimension of ``name`` and record ``name[axis]``.

        Raises:
            ContradictionError: the tensor has no such axis.
        """
        shape = self._shapes[self.prefix + name]
        if axis >= len(shape):
            raise ContradictionError(
                f"{self.prefix}{name} has shape {list(shape)}; a tensor with more than "
                f"{axis} dimension(s) was expected there."
            )
        self._reads.append(f"{self.prefix}{name}[{axis}]")
        return shape[axis]

    def has(self, name: str) -> bool:
        """Tell whether ``name`` exists, and record the look."""
        self._reads.append(f"{self.prefix}{name} {'present' if name in self else 'absent'}")
        return name in self

    def indices(self, name: str) -> list[int]:
        """Return the sorted integer children of ``name`` (``"blocks"`` → ``[0, 1, ...]``).

        Siblings that are no integers are left out.
        """
        start = self.prefix + name + "."
        found = {k[len(start) :].split(".", 1)[0] for k in self._shapes if k.startswith(start)}
        return sorted(int(child) for child in found if child.isascii() and child.isdecimal())

    def count(self, name: str) -> int:
        """Return how many children ``0 .. n-1`` the list ``name`` has, and record the look.

        Raises:
            ContradictionError: a number is missing in between.
        """
        children = self.indices(name)
        if children != list(range(len(children))):
            missing = sorted(set(range(children[-1])) - set(children))
            raise ContradictionError(
                f"{self.prefix}{name} has entries up to {children[-1]} but lacks {missing[:5]}: "
                "the checkpoint is incomplete."
            )
        self._reads.append(f"{self.prefix}{name}.0..{len(children) - 1}")
        return len(children)

    def require(self, name: str, expected: tuple[int, ...], why: str) -> None:
        """Check one shape against what the other tensors of its component demand.

        Args:
            name: tensor name.
            expected: shape that the rest of the component implies.
            why: the formula behind ``expected``, for the message.

        Raises:
            ContradictionError: the tensor is absent or differs.
        """
        found = self._shapes.get(self.prefix + name)
        if found is None:
            raise ContradictionError(
                f"{self.prefix}{name} is absent; {list(expected)} was expected ({why}). "
                "The checkpoint is incomplete."
            )
        if found != expected:
            raise ContradictionError(
                f"{self.prefix}{name} has shape {list(found)}, but {list(expected)} was expected "
                f"({why}). The tensors of this component do not fit together."
            )

    def take_reads(self) -> str:
        """Return the reads since the last call, as text, and forget them."""
        reads = list(dict.fromkeys(self._reads))
        self._reads.clear()
        return ", ".join(reads)


class Observations(Mapping[str, Observed]):
    """Collects the fields that an inference rule reads off a :class:`Shapes`.

    >>> shapes = Shapes({"mlp.0.weight": (4, 3)})
    >>> seen = Observations(shapes)
    >>> seen.add("hidden_dim", shapes.dim("mlp.0.weight", 0))
    >>> seen["hidden_dim"]
    Observed(value=4, evidence='mlp.0.weight[0]')
    """

    def __init__(self, shapes: Shapes) -> None:
        self._source = shapes
        self._fields: dict[str, Observed] = {}
        shapes.take_reads()

    def add(self, field: str, value: Any, formula: str = "") -> None:
        """Record ``field``; the reads made since the previous field are its evidence.

        Args:
            field: setting that was observed.
            value: what it is.
            formula: how the value follows from the reads, when it is not one of them.
        """
        reads = self._source.take_reads()
        evidence = f"{formula} from {reads}" if formula and reads else formula or reads
        self._fields[field] = Observed(value, evidence)

    def __getitem__(self, field: str) -> Observed:
        return self._fields[field]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)
