"""How far the weights of two checkpoints lie apart, component by component.

The files are mapped, and mapped anew for every portion, so that the memory in use does not grow
with the checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, isfinite, prod, sqrt

import torch
from torch import Tensor

from panovlm.checkpoint.formats.header import ITEMSIZE
from panovlm.checkpoint.loading.stored import stored_tensors
from panovlm.checkpoint.report.compare import Comparison

PORTION = 256 << 20
"""Bytes of one file that are read before it is mapped anew."""
CHUNK = 1 << 20
"""Values that are compared at once."""


@dataclass
class Distance:
    """The difference of one component's weights, over all tensors that both sides have.

    Attributes:
        tensors: how many were compared.
        differ: how many of them are not equal.
        square: sum of the squared differences.
        norm_square: sum of the squares of the first side's values.
        max_abs: largest difference of a single value.
    """

    component: str
    tensors: int = 0
    differ: int = 0
    square: float = 0.0
    norm_square: float = 0.0
    max_abs: float = 0.0

    @property
    def relative_l2(self) -> float:
        """Norm of the difference over the norm of the first side (infinite over zero)."""
        if self.square == 0:
            return 0.0
        return sqrt(self.square / self.norm_square) if self.norm_square else inf

    def as_json(self) -> dict[str, object]:
        """Return the distance as plain data; a number that is not finite as a text."""
        return {
            "component": self.component,
            "tensors": self.tensors,
            "differ": self.differ,
            "relative_l2": _plain(self.relative_l2),
            "max_abs": _plain(self.max_abs),
        }


def distances(comparison: Comparison) -> list[Distance]:
    """Compare the values of every tensor that both checkpoints have with the same shape.

    Values are compared as float64, whatever the types in the files. Two NaN in one place are equal.
    """
    found: dict[str, Distance] = {}
    one, other = comparison.one, comparison.other
    for names in _portions(comparison):
        first, second = stored_tensors(one), stored_tensors(other)
        for name in names:
            stored = (side.keys.files.get(name, name) for side in (one, other))
            component = name.split(".", 1)[0]
            distance = found.setdefault(component, Distance(component))
            _add(distance, first[next(stored)], second[next(stored)])
    return list(found.values())


def _portions(comparison: Comparison) -> Iterator[Sequence[str]]:
    """Divide the names so that each portion is of bounded size, or one tensor."""
    one = comparison.one
    names: list[str] = []
    size = 0
    for name in comparison.shared:
        info = one.header.tensors[one.keys.files.get(name, name)]
        more = prod(info.shape) * ITEMSIZE[info.dtype]
        if names and size + more > PORTION:
            yield names
            names, size = [], 0
        names.append(name)
        size += more
    if names:
        yield names


def _add(distance: Distance, one: Tensor, other: Tensor) -> None:
    """Add one tensor to its component's distance."""
    differs = False
    pairs = zip(one.reshape(-1).split(CHUNK), other.reshape(-1).split(CHUNK), strict=True)
    for first, second in pairs:
        if _same_bytes(first, second):
            distance.norm_square += float(_double(first).square().sum())
            continue
        a, b = _double(first), _double(second)
        gap = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, a - b).abs()
        differs = differs or bool(gap.any()) or bool(gap.isnan().any())
        distance.square += float(gap.square().sum())
        distance.norm_square += float(a.square().sum())
        largest = float(gap.max())
        # A comparison with NaN is never true, so that NaN has to be taken on purpose.
        distance.max_abs = largest if largest != largest else max(distance.max_abs, largest)
    distance.tensors += 1
    distance.differ += differs


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype:
        return False
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def _double(values: Tensor) -> Tensor:
    """Return values as float64; a complex one as its two parts."""
    return (torch.view_as_real(values) if values.is_complex() else values).double()


def _plain(number: float) -> float | str:
    return number if isfinite(number) else str(number)
