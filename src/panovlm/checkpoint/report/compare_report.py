"""A comparison of two checkpoints as text and as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from panovlm.checkpoint.report.compare import ABSENT, Comparison
from panovlm.checkpoint.report.describe import short, trained

if TYPE_CHECKING:
    from panovlm.checkpoint.report.distance import Distance

SHOWN = 10


def as_json(found: Comparison, distances: Sequence[Distance] | None) -> dict[str, Any]:
    """Return a comparison as plain data.

    Args:
        found: the comparison.
        distances: that of the weights, or ``None`` where they were not read.
    """
    return {
        "checkpoints": [str(found.one.path), str(found.other.path)],
        "same": is_same(found, distances),
        "settings": [
            {
                "field": change.field,
                "values": list(change.values),
                "sources": list(change.sources),
                "bearing": change.bearing,
            }
            for change in found.settings
        ],
        "only": [list(names) for names in found.only],
        "shapes": {name: [list(shape) for shape in pair] for name, pair in found.shapes.items()},
        "dtypes": {name: list(pair) for name, pair in found.dtypes.items()},
        "tokenizers": {name: list(pair) for name, pair in found.tokenizers.items()},
        "digests": {name: list(pair) for name, pair in found.digests.items()},
        "weights": None if distances is None else [distance.as_json() for distance in distances],
    }


def is_same(found: Comparison, distances: Sequence[Distance] | None) -> bool:
    """Tell whether nothing that was compared differs."""
    return found.same and not any(distance.differ for distance in distances or ())


def as_text(found: Comparison, distances: Sequence[Distance] | None) -> str:
    """Return a comparison for a terminal; arguments as for :func:`as_json`."""
    return "\n".join(
        (*_sides(found), *_settings(found), *_tensors(found), *_weights(distances), "")
    ) + _verdict(found, distances)


def _sides(found: Comparison) -> Iterator[str]:
    for letter, side in (("A", found.one), ("B", found.other)):
        told = trained(side)
        yield f"{letter}  {side.path}  ({side.header.container}{', ' + told if told else ''})"
    yield ""


def _settings(found: Comparison) -> Iterator[str]:
    if not found.settings:
        yield "settings: no difference"
        return
    yield f"settings: {len(found.settings)} differ"
    both = [change for change in found.settings if ABSENT not in change.sources]
    for bearing in (True, False):
        changes = [change for change in both if change.bearing == bearing]
        if changes and not bearing:
            yield "  without effect on a loaded model:"
        for change in changes:
            yield f"  {change.field}"
            for letter, value, source in zip("AB", change.values, change.sources, strict=True):
                yield f"    {letter}  {short(value)}  ({source})"
    for side, letter in enumerate("AB"):
        told = [change for change in found.settings if change.sources[1 - side] == ABSENT]
        stated = [f"{change.field} = {short(change.values[side])}" for change in told]
        yield from _names(f"stated by {letter} only", stated)


def _tensors(found: Comparison) -> Iterator[str]:
    first, second = found.only
    if first or second or found.shapes or found.dtypes:
        yield f"tensors: {len(found.shared)} with the same name and shape"
    else:
        yield f"tensors: {len(found.shared)}, with the same names, shapes and types"
    yield from _names("only in A", first)
    yield from _names("only in B", second)
    yield from _names(
        "other shape", [f"{n}: {list(a)} -> {list(b)}" for n, (a, b) in found.shapes.items()]
    )
    kinds = Counter(found.dtypes.values())
    for (one, other), count in kinds.most_common():
        yield f"  other type: {count} tensor(s) {one} -> {other}"
    if found.tokenizers:
        yield from _names("tokenizer files that differ", list(found.tokenizers))
    else:
        yield "tokenizer: no difference"
    for name, (one, other) in found.digests.items():
        yield f"digest of the {name}: {one if one == other else f'{one} -> {other}'}"


def _names(what: str, names: Sequence[str]) -> Iterator[str]:
    if names:
        yield f"  {what}: {len(names)}"
        yield from (f"    {name}" for name in names[:SHOWN])
        if len(names) > SHOWN:
            yield f"    ... and {len(names) - SHOWN} more"


def _weights(distances: Sequence[Distance] | None) -> Iterator[str]:
    if distances is None:
        yield "weights: values were not compared (--weights does)"
        return
    yield "weights, tensors with the same name and shape:"
    table = [("component", "tensors", "differ", "relative L2", "largest difference")]
    table += [
        (d.component, str(d.tensors), str(d.differ), f"{d.relative_l2:.3g}", f"{d.max_abs:.3g}")
        for d in distances
    ]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        yield "  " + "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()


def _verdict(found: Comparison, distances: Sequence[Distance] | None) -> str:
    if not is_same(found, distances):
        return "\nverdict: different"
    told = "the values of the weights were not compared" if distances is None else "weights too"
    return f"\nverdict: the same ({told})"
