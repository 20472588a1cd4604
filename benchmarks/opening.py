"""Opening a large checkpoint of Lightning's kind, against the usual ways to do it.

    python benchmarks/opening.py [--runs 5] [--update docs/performance.md]

Three works, each in fresh processes: telling what is in the file (names, shapes, types), the same
as a whole command, and loading the model. The usual way to load is to build the model with random
weights, read the file, and copy. Names and shapes, and samples of every loaded weight, must be
equal. Some 5 GB are written to a temporary folder, and twice as much memory is needed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from headers import WIDTHS, environment, make, megabytes, python
from machine import machine, spread
from table import replace_table

DESCRIBE = {
    "panovlm": """
from panovlm.checkpoint.formats import read_header
def work(path):
    return {name: list(header.shape) for name, header in read_header(path).tensors.items()}
""",
    "zipfile and pickle.Unpickler": """
import pickle, zipfile
class Inert(dict):
    def __init__(self, *_):
        pass
    def __setstate__(self, _):
        pass
class Reader(pickle.Unpickler):
    def find_class(self, module, name):
        tensor = name == "_rebuild_tensor_v2"
        return (lambda storage, offset, shape, *_: list(shape)) if tensor else Inert
    def persistent_load(self, _):
        return None
def work(path):
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        return Reader(archive.open(name)).load()["state_dict"]
""",
    "torch.load to the meta device": """
import torch
def work(path):
    state = torch.load(path, map_location="meta", weights_only=True)["state_dict"]
    return {name: list(tensor.shape) for name, tensor in state.items()}
""",
    "torch.load, mapped": """
import torch
def work(path):
    state = torch.load(path, mmap=True, weights_only=True)["state_dict"]
    return {name: list(tensor.shape) for name, tensor in state.items()}
""",
    "torch.load": """
import torch
def work(path):
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name: list(tensor.shape) for name, tensor in state.items()}
""",
}
TIMED = """
import hashlib, json, sys, time
from pathlib import Path
begun = time.perf_counter()
found = work(Path(sys.argv[1]))
seconds = time.perf_counter() - begun
text = json.dumps(found, sort_keys=True).encode()
print(json.dumps({"seconds": seconds, "found": hashlib.sha256(text).hexdigest()}))
"""
COMMANDS = {
    "panovlm inspect": ["-m", "panovlm", "inspect"],
    "import torch and torch.load to the meta device": [
        "-c",
        "import sys, torch; torch.load(sys.argv[1], map_location='meta', weights_only=True)",
    ],
}
LOAD = {
    "panovlm": """
def load(path):
    return PanoramaVLM.from_checkpoint(path)
""",
    "random weights, torch.load, copy": """
def load(path):
    recipe = resolve(path).config
    model = PanoramaVLM(PanoramaVLMConfig(recipe))
    file = torch.load(path, weights_only=True)["state_dict"]
    state = {name.removeprefix("model."): tensor for name, tensor in file.items()}
    model.load_state_dict(state)
    return model
""",
}
LOADED = """
import hashlib, json, sys, time, torch
from pathlib import Path
from panovlm.checkpoint.resolve import resolve
from panovlm.models.configuration import PanoramaVLMConfig
from panovlm.models.model import PanoramaVLM
torch.set_num_threads(1)
PanoramaVLM.from_checkpoint(sys.argv[2])  # what is imported only when a model is built
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
before, begun = peak(), time.perf_counter()
model = load(Path(sys.argv[1]))
there = time.perf_counter() - begun
with torch.no_grad():
    sums = [float(p.view(-1)[::1024].sum()) for _, p in sorted(model.named_parameters())]
print(json.dumps({"seconds": there, "touched": time.perf_counter() - begun,
    "memory": peak() - before, "found": hashlib.sha256(str(sums).encode()).hexdigest()}))
"""


def describing(file: Path, runs: int) -> list[str]:
    """Time telling what is in a file."""
    times: dict[str, list[float]] = {name: [] for name in DESCRIBE}
    found: dict[str, str] = {}
    for _ in range(runs):
        for name, code in DESCRIBE.items():
            told = python(code + TIMED, file)
            times[name].append(told["seconds"] * 1e3)
            found[name] = str(told["found"])
    if len(set(found.values())) > 1:
        sys.exit(f"not the same names and shapes: {found}")
    return rows("names, shapes and types, ms", times)


def commands(file: Path, runs: int) -> list[str]:
    """Time whole processes."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, words in COMMANDS.items():
            begun = time.perf_counter()
            whole = [sys.executable, *words, str(file)]
            subprocess.run(whole, stdout=subprocess.DEVNULL, check=True, env=environment())
            times[name].append(time.perf_counter() - begun)
    return rows("a whole process, s", times)


def loading(file: Path, small: Path, runs: int) -> list[str]:
    """Time loading; the usual way once, since it takes long."""
    there: dict[str, list[float]] = {name: [] for name in LOAD}
    touched: dict[str, list[float]] = {name: [] for name in LOAD}
    found: dict[str, str] = {}
    for run in range(runs):
        for name, code in LOAD.items():
            if run and name != "panovlm":
                continue
            told = python(code + LOADED, file, small)
            there[name].append(told["seconds"])
            touched[name].append(told["touched"])
            found[name] = str(told["found"])
    if len(set(found.values())) > 1:
        sys.exit(f"not the same weights: {found}")
    return rows("loaded, s", there) + rows("loaded and every page touched, s", touched)


def rows(work: str, times: dict[str, list[float]]) -> list[str]:
    """Return the lines of a work; ours is the first candidate."""
    first = median(next(iter(times.values())))
    return [
        f"| {work} | {name} | {spread(taken)} | {median(taken) / first:.1f} |"
        for name, taken in times.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the checkpoints go for the time")
    parser.add_argument("--update", type=Path, help="page whose table is replaced")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        small = make(Path(name) / "small", WIDTHS["small"], "torch")
        file = make(Path(name) / "large", WIDTHS["large"], "torch")
        lines = [
            f"On {machine()}; a file of {megabytes(file)} in the page cache; medians of "
            f"{options.runs} runs [smallest .. largest], the usual way to load once.",
            "",
            "| work | way | time | times as long |",
            "|---|---|---|---|",
            *describing(file, options.runs),
            *commands(file, options.runs),
            *loading(file, small, options.runs),
        ]
    print("\n".join(lines))
    if options.update:
        replace_table(options.update, "opening.py", lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
