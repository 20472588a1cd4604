"""Runs the gauntlet: every case, every contestant; prints the table and writes the verdicts.

    python -m benchmarks.gauntlet                             # everything, some minutes
    python -m benchmarks.gauntlet --only "Damaged" --ours     # some cases, PanoVLM alone
    python -m benchmarks.gauntlet --write-docs                # docs/gauntlet.md from the results

Run it in the root of the repository. It ends with 1 where PanoVLM broke its promise.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from benchmarks.gauntlet import report
from benchmarks.gauntlet.cases import all_cases
from benchmarks.gauntlet.contestants import OURS, PEERS
from benchmarks.gauntlet.judge import faults, run
from benchmarks.gauntlet.stock import Stock

PAGE = Path("docs/gauntlet.md")


def main() -> int:
    """Run the cases; 1 if PanoVLM broke its promise."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default="", help="cases whose group or name has this text")
    parser.add_argument("--ours", action="store_true", help="PanoVLM alone")
    parser.add_argument("--json", type=Path, help="where all verdicts go, with messages")
    parser.add_argument("--write-docs", action="store_true", help=f"write {PAGE}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    contestants = OURS if options.ours else {**OURS, **PEERS}
    rows: list[report.Row] = []
    broken: list[str] = []
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        stock = Stock(Path(folder))
        for case in all_cases():
            if options.only.lower() not in f"{case.group}: {case.name}".lower():
                continue
            outcomes = run(stock, case, contestants)
            rows.append(report.Row(case, outcomes))
            broken += faults(case, outcomes)
            print(report.line(rows[-1]), flush=True)
    print("\n" + report.summary(rows))
    print(f"\n{len(rows)} cases in {time.monotonic() - begun:.0f} s")
    if options.json:
        options.json.write_text(report.as_json(rows), encoding="utf-8")
    if options.write_docs:
        PAGE.write_text(report.page(rows), encoding="utf-8")
    print("\n".join(["", *broken]) if broken else "\nthe promise was kept")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
