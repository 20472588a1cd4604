"""What a probe keeps: a few numbers about what every part of a model makes of a fixed input.

The numbers are evidence, where a document's settings are claims: they show what no shape shows,
such as a number of heads or the place of a norm. No torch is needed here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from panovlm.config.base import StrictModel
from panovlm.config.problems import ValidationError
from panovlm.errors import CheckpointError

if TYPE_CHECKING:
    from panovlm.checkpoint.resolution import Resolution

ENTRY = "panovlm_probe"
"""Entry of a checkpoint file that holds the probe as a JSON string.

It stands apart from the document, so that it is left when the document is lost or wrong."""
VERSION = 1
PRECISIONS = ("float64", "float32", "float16", "bfloat16")
"""Number types from fine to coarse."""

Part = Literal["tower", "resampler", "projector", "language", "preprocessing", "prompt"]
PARTS: tuple[Part, ...] = (
    "tower",
    "resampler",
    "projector",
    "language",
    "preprocessing",
    "prompt",
)
"""What is probed, in the order in which differences are reported."""


class Sketch(StrictModel):
    """A few numbers that stand for an array of any size."""

    shape: tuple[int, ...]
    """Shape of the array."""
    finite: bool = True
    """Whether all its values are finite; if not, there are no other numbers."""
    mean: float = 0.0
    """Mean of its values."""
    rms: float = 0.0
    """Root of the mean of their squares."""
    marks: tuple[float, ...] = ()
    """Sums of its values with fixed signs, divided by the root of their number: two arrays that
    differ by some root mean square have marks that differ by about as much."""


class Measured(StrictModel):
    """What one part computed."""

    dtype: str
    """Coarsest number type of the part's weights, as torch spells it."""
    device: str
    """Kind of device on which it ran."""
    sketches: dict[str, Sketch]
    """``output``; and, apart from it, what hardly shows there: ``norms`` (of a faint input, where
    their eps counts), ``activations`` and the ``frequencies`` of rotary positions."""
    weights: Sketch
    """Some values of every weight: tells other settings from other weights."""


class Inputs(StrictModel):
    """Sizes of the fixed inputs.

    Every part has an input of its own, so that a part that differs does not make those behind it
    differ.
    """

    pixels: tuple[int, int]
    """Height and width of the tower's one view."""
    tokens: int
    """Tokens that the tower makes of it, and that the resampler reads."""
    resampled: int
    """Tokens per view that the projector reads."""
    views: int
    """Views that the projector reads."""
    text_ids: tuple[int, ...]
    """Text that the language model reads after (or before) some vision tokens."""


class Probe(StrictModel):
    """What every part of a model computes on fixed inputs."""

    version: Literal[1] = VERSION
    inputs: Inputs
    parts: dict[Part, Measured]
    views: dict[str, Sketch]
    """Preprocessing: the ``pictures`` cut out of a fixed panorama, and the ``values`` that become
    of the 256 pixel values."""
    prompt: dict[str, str]
    """SHA-256 of the token ids of fixed prompts; empty: the model had no tokenizer."""
    assumed: tuple[str, ...] = ()
    """Fields that nobody knew when the model was probed: no evidence of their values."""

    def to_json(self) -> str:
        """Return the probe as JSON text."""
        return json.dumps(self.model_dump(mode="json"))

    def rounded(self, dtypes: Mapping[Part, str]) -> Probe:
        """Return the probe for the same weights in other number types, as torch spells them."""
        parts = {
            part: measured.model_copy(update={"dtype": coarsest((measured.dtype, dtypes[part]))})
            for part, measured in self.parts.items()
        }
        return self.model_copy(update={"parts": parts})


def coarsest(names: Iterable[str]) -> str:
    """Return the coarsest of some number types; one that is not known counts as the coarsest."""
    return max(names, key=lambda name: PRECISIONS.index(name) if name in PRECISIONS else 99)


@dataclass(frozen=True)
class FoundProbe:
    """A probe and where it was found.

    Attributes:
        probe: the probe.
        origin: its place, for messages.
        own: whether it stands in the checkpoint file itself; a document beside it may belong to
            another checkpoint of the same folder.
    """

    probe: Probe
    origin: str
    own: bool


def find_probe(resolution: Resolution) -> FoundProbe | None:
    """Return the probe of a checkpoint, ``None`` if it has none or only one of a newer version.

    Its own entry in the file comes first, then the document inside the file, then the one beside
    it.

    Raises:
        CheckpointError: it is damaged.
    """
    file = resolution.path.name
    text = resolution.header.extras.get(ENTRY)
    inside, document = resolution.embedded, resolution.metadata
    own = True
    if isinstance(text, str):
        raw, origin = _object(text, resolution), f"the probe inside {file}"
    elif inside is not None and inside.probe is not None:
        raw, origin = inside.probe, f"the probe in the metadata inside {file}"
    elif document is not None and document.probe is not None:
        raw, origin, own = document.probe, "the probe in the document beside it", False
    else:
        return None
    found = raw.get("version")
    if isinstance(found, int) and found > VERSION:
        note = (
            f"{origin} is of version {found} and was not compared; this PanoVLM reads up to "
            f"{VERSION}"
        )
        resolution.notes += [] if note in resolution.notes else [note]
        return None
    try:
        probe = Probe.model_validate(raw)
    except ValidationError as error:
        raise _damaged(resolution, str(error.problems[0])) from error
    # It is of the weights that were trained, not of their average.
    return FoundProbe(probe, origin, own and resolution.weights != "ema")


def own_probe(resolution: Resolution) -> dict[str, Any] | None:
    """Return the probe that the checkpoint file itself holds, as it stands there.

    A damaged one counts as none; loading tells what is wrong with it.
    """
    text = resolution.header.extras.get(ENTRY)
    if not isinstance(text, str):
        return resolution.embedded.probe if resolution.embedded else None
    try:
        raw = json.loads(text)
    except ValueError:
        return None
    return raw if isinstance(raw, dict) else None


def _object(text: str, resolution: Resolution) -> Mapping[str, Any]:
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise _damaged(resolution, f"not JSON ({error})") from error
    if not isinstance(raw, dict):
        raise _damaged(resolution, "no JSON object")
    return raw


def _damaged(resolution: Resolution, fault: str) -> CheckpointError:
    return CheckpointError(
        f"the probe of {resolution.path} is damaged: {fault}. Take another copy of the file, or "
        "load it unprobed with --no-probe (probe=False)."
    )
