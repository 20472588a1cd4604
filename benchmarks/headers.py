"""What opening a checkpoint costs, for a small file and for one a hundred times as large.

    python benchmarks/headers.py [--runs 15] [--update docs/performance.md]

Three things are measured, each in fresh processes, by the operating system's own counts: the bytes
read and the time taken to resolve a configuration, the whole command ``panovlm inspect``, and
loading a model with every page of its weights touched, against plain reading of the same file.
The checkpoints (some 5 GB at a time) are written to a temporary folder and removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine import machine, spread
from table import replace_table

from panovlm.checkpoint.loading.load import build_empty
from panovlm.checkpoint.saving.export import Export
from panovlm.checkpoint.saving.save import describe_model, embedded_entries
from panovlm.checkpoint.saving.weight_files import Stored
from panovlm.config.schema import Recipe
from panovlm.models.language.tokenizer import prepare_tokenizer, word_tokenizer

WIDTHS: Mapping[str, Mapping[str, Any]] = {
    "small": {
        "tower": {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 4},
        "language": {
            "hidden_size": 160,
            "intermediate_size": 448,
            "head_dim": 40,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 8_000,
        },
        "resampler": {"hidden_dim": 96, "d_state": 16},
        "latent_dimension": 96,
    },
    "large": {
        "tower": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        "language": {
            "hidden_size": 1536,
            "intermediate_size": 5120,
            "head_dim": 96,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "vocab_size": 100_000,
        },
        "resampler": {"hidden_dim": 1024, "d_state": 64},
        "latent_dimension": 768,
    },
}
"""Two models with the same layers (12 in the tower, 28 in the language model) and so with the same
names of tensors; they differ in width."""

RESOLVE = """
import json, sys, time
from panovlm.checkpoint.report.describe import as_text
from panovlm.checkpoint.resolve import resolve
def counts():
    return dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
before, begun = counts(), time.perf_counter()
found = resolve(sys.argv[1])
seconds, after = time.perf_counter() - begun, counts()
found.raise_conflicts()
print(json.dumps({"seconds": seconds, "tensors": len(found.keys.files),
    **{name: int(after[name]) - int(before[name]) for name in ("rchar", "syscr", "read_bytes")}}))
"""
LOAD = """
import json, sys, time, torch
from panovlm.models.model import PanoramaVLM
torch.set_num_threads(1)
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
PanoramaVLM.from_checkpoint(sys.argv[2])  # what is imported only when a model is built
before, begun = anonymous(), time.perf_counter()
model = PanoramaVLM.from_checkpoint(sys.argv[1])
loaded, held = time.perf_counter() - begun, anonymous() - before
with torch.no_grad():
    total = sum(float(p.view(-1)[::1024].sum()) for p in model.parameters())
print(json.dumps({"load": loaded, "touched": time.perf_counter() - begun, "anonymous": held,
    "anonymous after touching": anonymous() - before}))
"""
READ = """
import json, sys, time
begun = time.perf_counter()
buffer = memoryview(bytearray(16 << 20))
with open(sys.argv[1], "rb", buffering=0) as file:
    while file.readinto(buffer):
        pass
print(json.dumps({"seconds": time.perf_counter() - begun}))
"""


def make(folder: Path, widths: Mapping[str, Any], kind: str) -> Path:
    """Write one model, alone in its folder, and return the file."""
    tokenizer = word_tokenizer(["what is left of the red ball ?"])
    prepare_tokenizer(tokenizer)
    recipe = Recipe.model_validate(
        {
            "models": {
                "vision_config": {
                    "model_type": "siglip_vision_model",
                    "num_hidden_layers": 12,
                    "image_size": 224,
                    "patch_size": 16,
                    **widths["tower"],
                },
                "language_config": {
                    "model_type": "qwen3",
                    "num_hidden_layers": 28,
                    "tie_word_embeddings": True,
                    **widths["language"],
                },
                "resampler_type": "bimamba",
                "resampler_config": widths["resampler"],
                "latent_dimension": widths["latent_dimension"],
            }
        }
    )
    model = build_empty(recipe)
    model.attach_tokenizer(tokenizer)
    tied = "language_model.lm_head.weight"
    state = {
        name: torch.full_like(tensor, 0.01, device="cpu") if tensor.is_meta else tensor
        for name, tensor in model.state_dict().items()
        if name != tied
    }
    known = describe_model(model)
    entries = embedded_entries(model, known)
    folder.mkdir(parents=True)
    if kind == "torch":
        path = folder / "model.ckpt"
        whole = {f"model.{name}": tensor for name, tensor in state.items()}
        whole[f"model.{tied}"] = state["language_model.model.embed_tokens.weight"]
        torch.save({"state_dict": whole, **entries}, path)
        return path
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        weights = {name: Stored(tensor, tensor.dtype) for name, tensor in state.items()}
        Export(model, weights, known).safetensors(file)
    return path


def python(code: str, *arguments: Path) -> dict[str, float]:
    """Run code in a fresh process and return what it measured."""
    words = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment())
    return json.loads(done.stdout)


def environment() -> dict[str, str]:
    """Return an environment in which modules are compiled once, as installed ones are."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(CACHE), "OMP_NUM_THREADS": "1"}


CACHE = Path(tempfile.gettempdir()) / f"panovlm-bytecode-{os.getpid()}"


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resolving(kind: str, files: Mapping[str, Path], runs: int) -> Iterator[str]:
    """Compare bytes and time of resolving."""
    warm: dict[str, list[dict[str, float]]] = {size: [] for size in files}
    cold: dict[str, list[dict[str, float]]] = {size: [] for size in files}
    for _ in range(runs):
        for size, path in files.items():
            forget(path)
            cold[size].append(python(RESOLVE, path))
            warm[size].append(python(RESOLVE, path))
    for size, path in files.items():
        disk = median(run["read_bytes"] for run in cold[size])
        times = [[run["seconds"] * 1e3 for run in found[size]] for found in (warm, cold)]
        first = warm[size][0]
        yield (
            f"| {kind}, {first['tensors']} tensors | {megabytes(path)} | {first['rchar']:,} "
            f"| {first['syscr']} | {disk / 1e6:.2f} MB | {spread(times[0], 1)} "
            f"| {spread(times[1], 1)} |"
        )
    ratio = [
        median(run[key] for run in found["large"]) / median(run[key] for run in found["small"])
        for found, key in ((warm, "rchar"), (warm, "seconds"), (cold, "seconds"))
    ]
    read, warmly, coldly = (f"**{value:.2f}**" for value in ratio)
    yield f"| **large : small** | | {read} | | | {warmly} | {coldly} |"


def inspecting(kind: str, files: Mapping[str, Path], runs: int) -> Iterator[str]:
    """Time the whole command."""
    times: dict[str, list[tuple[float, float]]] = {size: [] for size in files}
    for _ in range(runs):
        for size, path in files.items():
            words = [sys.executable, "-m", "panovlm", "inspect", str(path)]
            before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(words, stdout=subprocess.DEVNULL, check=True, env=environment())
            seconds = time.perf_counter() - begun
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            times[size].append((seconds, worked))
    for size, found in times.items():
        walls, works = zip(*found, strict=True)
        yield f"| {kind} | {megabytes(files[size])} | {spread(walls)} | {spread(works)} |"


def loading(kind: str, files: Mapping[str, Path], runs: int) -> Iterator[str]:
    """Compare a load, every page touched, with plain reading."""
    path = files["large"]
    loads: list[dict[str, float]] = []
    reads: list[float] = []
    for _ in range(runs):
        reads.append(python(READ, path)["seconds"])
        loads.append(python(LOAD, path, files["small"]))
    size = path.stat().st_size
    ratio = median(run["touched"] for run in loads) / median(reads)
    held = max(run["anonymous after touching"] for run in loads)
    yield (
        f"| {kind} | {megabytes(path)} | {spread([run['load'] for run in loads])} "
        f"| {spread([run['touched'] for run in loads])} | {spread(reads)} | **{ratio:.2f}** "
        f"| {held / 1e6:.0f} MB, **{held / size:.1%}** of the file |"
    )


def megabytes(path: Path) -> str:
    """Return the size of a file for the table."""
    return f"{path.stat().st_size / 1e6:,.0f} MB"


TABLES = (
    (
        resolving,
        "| resolve | file | bytes read | reads | from the disk, cold | ms, warm | ms, cold |",
    ),
    (
        inspecting,
        "| `panovlm inspect`, whole process | file | s | of them the processor worked |",
    ),
    (
        loading,
        "| load | file | s until the model is there | s until every page is touched "
        "| s to read the file | touched : read | anonymous memory |",
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="where the checkpoints go for the time")
    parser.add_argument("--update", type=Path, help="page whose tables are replaced")
    options = parser.parse_args()
    rows: list[list[str]] = [[] for _ in TABLES]
    try:
        for kind in ("torch", "safetensors"):
            with tempfile.TemporaryDirectory(dir=options.folder) as name:
                files = {size: make(Path(name) / size, WIDTHS[size], kind) for size in WIDTHS}
                for (measure, _), found in zip(TABLES, rows, strict=True):
                    found += measure(kind, files, options.runs)
                    print("\n".join(found), file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(CACHE, ignore_errors=True)
    lines = [f"On {machine()}; medians of {options.runs} runs [smallest .. largest].", ""]
    for (_, heading), found in zip(TABLES, rows, strict=True):
        lines += [heading, "|---" * (heading.count("|") - 1) + "|", *found, ""]
    print("\n".join(lines))
    if options.update:
        replace_table(options.update, "headers.py", lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
