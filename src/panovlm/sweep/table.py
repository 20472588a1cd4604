"""A comparison as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from panovlm.atomic import write_bytes, write_json
from panovlm.errors import ConfigError
from panovlm.sweep.compare import Comparison, Row
from panovlm.sweep.statistics import Interval

BEGIN = "<!-- written by panovlm sweep --table; everything up to the end mark is replaced -->"
END = "<!-- end of what panovlm sweep writes -->"
SEAM = ("seam", "1")


def write_tables(comparison: Comparison, folder: Path) -> None:
    """Write ``table.md``, ``table.csv`` and ``table.json`` into a folder."""
    write_bytes(folder / "table.md", markdown(comparison).encode())
    write_bytes(folder / "table.csv", as_csv(comparison).encode())
    write_json(folder / "table.json", comparison.as_json())


def write_page(comparison: Comparison, page: Path) -> None:
    """Put the tables into a page between two marks; without a page there, make one.

    Raises:
        ConfigError: a file of that name has no such marks, so that it would be lost.
    """
    part = f"{BEGIN}\n\n{markdown(comparison)}\n{END}\n"
    if page.exists():
        text = page.read_text("utf-8")
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise ConfigError(
                f"{page} was written by somebody and has no place for the tables; put the two "
                f"lines {BEGIN} and {END} where they belong."
            )
        part = f"{before}{part}{after.removeprefix(chr(10))}"
    else:
        part = f"# Ablations\n\n{part}"
    write_bytes(page, part.encode())


def markdown(comparison: Comparison) -> str:
    """Return the comparison as Markdown: what it rests on, the tables, what failed."""
    parts = [_head(comparison)]
    base, *others = comparison.rows
    if comparison.mode == "grid":
        parts.append(_table("setting", [base, *others]))
    else:
        factors = dict.fromkeys(row.choice[0][0] for row in others)
        for factor in factors:
            rows = [row for row in others if row.choice[0][0] == factor]
            top = [] if any(row.is_base for row in rows) else [base]
            parts.append(f"### {factor}\n\n{_table(factor, [*top, *rows])}")
    parts += [_noise(comparison), _failures(comparison.rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_csv(comparison: Comparison) -> str:
    """Return one line per choice."""
    lines = [_flat(row) for row in comparison.rows]
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, lines[0].keys(), lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    return text.getvalue()


def _flat(row: Row) -> dict[str, object]:
    """Return one line of the CSV file; what there is not is None."""
    difference, seam = row.difference, _seam(row) or (None, None)
    training = difference.training if difference else None
    return {
        "name": row.name,
        "is_base": row.is_base,
        "seeds": " ".join(map(str, row.seeds)),
        "missing": " ".join(map(str, row.missing)),
        "failed": " ".join(map(str, row.failures)),
        "accuracy": row.accuracy,
        "accuracy_low": row.interval and row.interval[0],
        "accuracy_high": row.interval and row.interval[1],
        "seam_accuracy": seam[0],
        "seam_questions": seam[1],
        "difference": difference and difference.value,
        "panoramas_low": difference and difference.panoramas[0],
        "panoramas_high": difference and difference.panoramas[1],
        "training_low": training and training[0],
        "training_high": training and training[1],
        "verdict": difference and difference.verdict,
        "views": row.views,
        "vision_tokens": row.vision_tokens,
        "parameters": row.parameters,
        "train_seconds": row.train_seconds,
        "time": row.time,
    }


def _head(comparison: Comparison) -> str:
    """Say what was measured and how to read it."""
    missing = sum(len(row.missing) for row in comparison.rows)
    state = f"**Not complete: {missing} trainings are missing.**\n\n" if missing else ""
    if not comparison.base_accuracies:
        return f"{state}The base has no result yet, so nothing can be compared with it."
    accuracies = comparison.base_accuracies
    count = len(accuracies)
    text = (
        f"{comparison.questions} questions about {comparison.panoramas} unseen panoramas, the same "
        "for every model. Always giving the most frequent answer is right "
        f"{_percent(comparison.most_frequent)} % of the time. The base was trained {count} "
        f"time{'s' if count > 1 else ''}: accuracy {', '.join(map(_percent, accuracies))} %"
    )
    if count == 1:
        return (
            f"{state}{text}. Intervals are over the choice of test panoramas only: how much "
            "another seed would change is not known, since the base was trained once."
        )
    return (
        f"{state}{text}; mean {_percent(fmean(accuracies))} %, standard deviation between them "
        f"{100 * stdev(accuracies):.1f} points. *Difference*: to the mean of the base, on the same "
        "questions, with its 95 % interval over the choice of test panoramas; *with luck of "
        "training*: the same, widened by how far trainings of the base lie apart, as if those of "
        "all settings did so. The verdict rests on the latter; of twenty settings that change "
        "nothing it calls one better or worse. *Time*: processor time of training, by that of the "
        "base."
    )


def _table(title: str, rows: Sequence[Row]) -> str:
    kinds = list(dict.fromkeys(kind for row in rows for kind in (row.groups or {}).get("kind", {})))
    kinds = kinds if len(kinds) > 1 else []
    head = [
        *(title, "accuracy [95 %]", *kinds, "across the seam", "difference [95 %]"),
        *("with luck of training", "verdict", "tokens", "time"),
    ]
    lines = [head, ["---"] * len(head), *(_cells(row, kinds) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Row, kinds: Sequence[str]) -> list[str]:
    """Return one row of a table."""
    name = ", ".join(value for _, value in row.choice) or "base"
    name = (
        f"**{name}** (base)" if row.is_base and row.choice else f"**{name}**" * row.is_base or name
    )
    if row.accuracy is None or row.interval is None:
        state = "failed" if row.failures else "not trained yet"
        return [name, state, *["–"] * (len(kinds) + 6)]
    difference, seam = row.difference, _seam(row)
    by_kind = (row.groups or {}).get("kind", {})
    compared = ["–", "–", "–"]
    if difference:
        wide = difference.training
        compared = [
            f"{_points(difference.value)} {_interval(difference.panoramas)}",
            _interval(wide) if wide else "–",
            difference.verdict,
        ]
    some = f" ({len(row.seeds)} trainings)" if len(row.seeds) > 1 else ""
    return [
        name,
        f"{_percent(row.accuracy)} % [{', '.join(map(_percent, row.interval))}]{some}",
        *(f"{_percent(by_kind[kind][0])} %" if kind in by_kind else "–" for kind in kinds),
        f"{_percent(seam[0])} % of {seam[1]}" if seam else "–",
        *compared,
        str(row.vision_tokens),
        "–" if row.time is None else f"{row.time:.2f}",
    ]


def _noise(comparison: Comparison) -> str:
    """Say which differences are none."""
    rows = [row for row in comparison.rows if row.difference]
    if not rows:
        return ""
    by_verdict = {
        verdict: [row.name for row in rows if row.difference and row.difference.verdict == verdict]
        for verdict in ("better", "worse", "within noise")
    }
    lines = [f"- {verdict}: {'; '.join(names) or 'none'}" for verdict, names in by_verdict.items()]
    return "### What can be told apart from the base\n\n" + "\n".join(lines)


def _failures(rows: Sequence[Row]) -> str:
    """List what failed, with the reasons."""
    lines = [
        f"- {row.name}, seed {seed}: {' '.join(message.split())}"
        for row in rows
        for seed, message in row.failures.items()
    ]
    return "### Failed\n\n" + "\n".join(lines) if lines else ""


def _seam(row: Row) -> tuple[float, int] | None:
    group, label = SEAM
    return (row.groups or {}).get(group, {}).get(label)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _interval(interval: Interval) -> str:
    return f"[{_points(interval[0])}, {_points(interval[1])}]"
