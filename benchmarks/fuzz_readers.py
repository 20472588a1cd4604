"""Damages checkpoints at random, many times for each reader, and prints how reading them ends.

    python benchmarks/fuzz_readers.py                  # 100,000 cases of every reader
    python benchmarks/fuzz_readers.py --cases 1000 --reader DCP
    python benchmarks/fuzz_readers.py --reader DCP --case 4711     # one case again

The only good ends are a result and an error of PanoVLM. Cases are numbered, and a number always
means the same damage; a case that ended otherwise belongs into KEPT of
tests/checkpoint/formats/test_fuzz.py once it is mended.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests" / "checkpoint"


def module(path: Path) -> ModuleType:
    """Load a module of the tests, which are no package."""
    spec = importlib.util.spec_from_file_location(f"fuzz_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def main() -> int:
    """Run the cases; 1 if one of them ended badly."""
    fuzzing = module(TESTS / "formats" / "fuzzing.py")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=100_000, help="cases of each reader")
    parser.add_argument("--reader", action="append", choices=list(fuzzing.READERS))
    parser.add_argument("--case", type=int, help="run only the case of this number")
    options = parser.parse_args()
    cases = range(options.cases) if options.case is None else [options.case]
    modules = (TESTS / "dcp_writer.py", HERE / "zero_writer.py", HERE / "small_model.py")
    writers = fuzzing.Writers(*map(module, modules))
    failed = 0
    print(
        f"{'reader':<18}{'cases':>8}{'read':>8}{'refused':>9}{'other':>7}{'slowest':>11}{'memory':>9}"
    )
    for name in options.reader or fuzzing.READERS:
        with tempfile.TemporaryDirectory() as folder:
            result = fuzzing.fuzz(name, cases, Path(folder), writers)
        seconds, slowest = result.slowest
        print(
            f"{name:<18}{len(cases):>8}{result.outcomes['read']:>8}"
            f"{result.outcomes['refused']:>9}{len(result.faults):>7}{seconds:>9.2f} s"
            f"{result.memory >> 20:>5} MiB   (slowest: case {slowest})",
            flush=True,
        )
        for case, fault in list(result.faults.items())[:20]:
            print(f"    case {case}: {fault[:200]}", flush=True)
        failed += len(result.faults)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
