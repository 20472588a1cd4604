"""Comparing what a model computes with a probe, as exactly as the number types allow.

No torch is needed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, sqrt
from typing import Literal

from panovlm.checkpoint.probe.record import Measured, Part, Sketch

Precision = Literal["float32", "tf32", "float16", "bfloat16"]

OUTPUT: Mapping[Precision, float] = {
    "float32": 5e-5,
    "tf32": 4e-3,
    "float16": 4e-3,
    "bfloat16": 3e-2,
}
"""By how much of its root mean square the output of a part may differ, if that has one layer.
Roundings of several add up like steps in random directions. ``tf32`` is float32 on an accelerator,
which may multiply with ten bits."""
LOCAL: Mapping[Precision, float] = {
    "float32": 2e-5,
    "tf32": 2e-5,
    "float16": 4e-3,
    "bfloat16": 3e-2,
}
"""The same for single functions (norms, activations) and for weights."""
EXACT = 2e-5
"""The same for what is computed in float32 whatever the weights are."""
PICTURES = 4e-3
"""The same for pixels: half a grey level."""


@dataclass(frozen=True)
class Difference:
    """One sketch that is not what it was.

    Attributes:
        part: the part of the model.
        sketch: which of its sketches.
        distance: how far apart they are, as a fraction of the root mean square; infinite for
            another shape, or where values are no numbers.
        allowed: how far they may be.
    """

    part: Part
    sketch: str
    distance: float
    allowed: float

    def __str__(self) -> str:
        if self.distance == inf:
            return f"{self.sketch} of another shape, or no longer finite"
        return f"{self.sketch} off by {self.distance:.2g}, {self.allowed:.2g} allowed"


def distance(one: Sketch, other: Sketch) -> float:
    """Return how far two sketches are apart, as a fraction of their root mean square."""
    if one.shape != other.shape or one.finite != other.finite:
        return inf
    scale = max(one.rms, other.rms)
    if scale == 0:
        return 0.0
    pairs = zip((one.mean, one.rms, *one.marks), (other.mean, other.rms, *other.marks), strict=True)
    return max(abs(a - b) for a, b in pairs) / scale


def compare(part: Part, recorded: Measured, measured: Measured, *, stored: str) -> list[Difference]:
    """Return the sketches of a part that are not what they were.

    Args:
        part: the part.
        recorded: what the probe says.
        measured: what the model computes now.
        stored: number type of the part's weights in the file, which may have been rounded since.
    """
    precision = _precision(recorded, measured, stored)
    norms = recorded.sketches["norms"].shape[0] if "norms" in recorded.sketches else 0
    allowed = {"output": OUTPUT[precision] * sqrt(1 + norms), "frequencies": EXACT}
    return sketch_differences(
        part, recorded.sketches, measured.sketches, allowed, otherwise=LOCAL[precision]
    )


def sketch_differences(
    part: Part,
    recorded: Mapping[str, Sketch],
    measured: Mapping[str, Sketch],
    allowed: Mapping[str, float],
    *,
    otherwise: float,
) -> list[Difference]:
    """Return the sketches that are further apart than is allowed.

    One that is on one side only is not compared: which functions of a backbone are modules of
    their own is a matter of the version of transformers.
    """
    found: list[Difference] = []
    for name in (name for name in recorded if name in measured):
        apart, bound = distance(recorded[name], measured[name]), allowed.get(name, otherwise)
        if apart > bound:
            found.append(Difference(part, name, apart, bound))
    return found


def same_weights(recorded: Measured, measured: Measured, *, stored: str) -> bool:
    """Tell whether a part has the weights that the probe was taken of."""
    allowed = LOCAL[_precision(recorded, measured, stored)]
    return distance(recorded.weights, measured.weights) <= allowed


def _precision(recorded: Measured, measured: Measured, stored: str) -> Precision:
    """Return the coarsest arithmetic that lies between two measurements."""
    names = {recorded.dtype, measured.dtype, stored}
    if names <= {"float32", "float64"}:
        on_cpu = recorded.device == measured.device == "cpu"
        return "float32" if on_cpu else "tf32"
    return "float16" if names <= {"float32", "float64", "float16"} else "bfloat16"
