"""What opening a checkpoint costs, for a small file and for one a hundred times as large.

    python benchmarks/headers.py [--runs 15] [--update docs/performance.md]

Three things are measured, each in fresh processes, by the operating system's own counts: the bytes
read and the time taken to resolve a configuration, the whole command ``panovlm inspect``, and
loading a model with every page of its weights touched, against plain reading of the same file.
The checkpoints (some 9 GB) are written to a temporary folder and removed at the end.
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

from panovlm.checkpoint.load import build_empty
from panovlm.checkpoint.save import describe_model, embedded_entries
from panovlm.checkpoint.weight_files import Stored, write_safetensors
from panovlm.config.schema import Recipe
from panovlm.models.language.tokenizer import prepare_tokenizer, word_tokenizer

MARKS = ("<!-- benchmarks/headers.py -->", "<!-- end -->")
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
from panovlm.checkpoint.describe import as_text
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


def make(folder: Path, widths: Mapping[str, Any]) -> dict[str, Path]:
    """Write one model as .ckpt and as .safetensors, each in a folder of its own."""
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
        name: torch.full(tuple(tensor.shape), 0.01, dtype=tensor.dtype)
        for name, tensor in model.state_dict().items()
        if name != tied
    }
    known = describe_model(model)
    entries = embedded_entries(model, known)
    files = {"torch": folder / "a" / "model.ckpt", "safetensors": folder / "b" / "m.safetensors"}
    for path in files.values():
        path.parent.mkdir(parents=True)
    whole = {f"model.{name}": tensor for name, tensor in state.items()}
    whole[f"model.{tied}"] = state["language_model.model.embed_tokens.weight"]
    torch.save({"state_dict": whole, **entries}, files["torch"])
    with files["safetensors"].open("wb") as file:
        weights = {name: Stored(tensor, tensor.dtype) for name, tensor in state.items()}
        write_safetensors(file, weights, {"format": "pt", "panovlm_metadata": known.to_json()})
    return files


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


def resolving(files: Mapping[str, Mapping[str, Path]], runs: int) -> Iterator[str]:
    """Compare bytes and time of resolving."""
    yield "| resolve | file | bytes read | reads | from the disk, cold | ms, warm | ms, cold |"
    yield "|---|---|---|---|---|---|---|"
    for kind in ("torch", "safetensors"):
        warm: dict[str, list[dict[str, float]]] = {"small": [], "large": []}
        cold: dict[str, list[dict[str, float]]] = {"small": [], "large": []}
        for _ in range(runs):
            for size in warm:
                path = files[size][kind]
                forget(path)
                cold[size].append(python(RESOLVE, path))
                warm[size].append(python(RESOLVE, path))
        for size in warm:
            path = files[size][kind]
            disk = [run["read_bytes"] / 1e6 for run in cold[size]]
            times = [[run["seconds"] * 1e3 for run in found[size]] for found in (warm, cold)]
            megabytes = path.stat().st_size / 1e6
            yield (
                f"| {kind}, {warm[size][0]['tensors']} tensors | {megabytes:,.0f} MB "
                f"| {warm[size][0]['rchar']:,} | {warm[size][0]['syscr']} "
                f"| {median(disk):.2f} MB | {spread(times[0], 1)} | {spread(times[1], 1)} |"
            )
        ratio = [
            median(run[key] for run in found["large"]) / median(run[key] for run in found["small"])
            for found, key in ((warm, "rchar"), (warm, "seconds"), (cold, "seconds"))
        ]
        yield (
            f"| **large : small** | | **{ratio[0]:.2f}** | | | **{ratio[1]:.2f}** "
            f"| **{ratio[2]:.2f}** |"
        )


def inspecting(files: Mapping[str, Mapping[str, Path]], runs: int) -> Iterator[str]:
    """Time the whole command."""
    yield "| `panovlm inspect`, whole process | file | s | of them the processor worked |"
    yield "|---|---|---|---|"
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(runs):
        for size, kinds in files.items():
            for kind, path in kinds.items():
                words = [sys.executable, "-m", "panovlm.cli.main", "inspect", str(path)]
                before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
                subprocess.run(words, stdout=subprocess.DEVNULL, check=True, env=environment())
                seconds = time.perf_counter() - begun
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                times.setdefault((kind, size), []).append((seconds, worked))
    for (kind, size), found in sorted(times.items()):
        megabytes = files[size][kind].stat().st_size / 1e6
        walls, works = zip(*found, strict=True)
        yield f"| {kind} | {megabytes:,.0f} MB | {spread(walls)} | {spread(works)} |"


def loading(files: Mapping[str, Mapping[str, Path]], runs: int) -> Iterator[str]:
    """Compare a load, every page touched, with plain reading."""
    yield (
        "| load, warm | file | s until the model is there | s until every page is touched "
        "| s to read the file | touched : read | anonymous memory |"
    )
    yield "|---|---|---|---|---|---|---|"
    for kind, path in files["large"].items():
        loads: list[dict[str, float]] = []
        reads: list[float] = []
        python(READ, path)
        for _ in range(runs):
            loads.append(python(LOAD, path, files["small"][kind]))
            reads.append(python(READ, path)["seconds"])
        size = path.stat().st_size
        ratio = median(run["touched"] for run in loads) / median(reads)
        held = max(run["anonymous after touching"] for run in loads)
        yield (
            f"| {kind} | {size / 1e6:,.0f} MB | {spread([run['load'] for run in loads])} "
            f"| {spread([run['touched'] for run in loads])} | {spread(reads)} | **{ratio:.2f}** "
            f"| {held / 1e6:.0f} MB, **{held / size:.1%}** of the file |"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="where the checkpoints go for the time")
    parser.add_argument("--update", type=Path, help="page whose tables are replaced")
    options = parser.parse_args()
    lines = [f"On {machine()}; medians of {options.runs} runs [smallest .. largest].", ""]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        try:
            files = {size: make(Path(name) / size, widths) for size, widths in WIDTHS.items()}
            for table in (resolving, inspecting, loading):
                lines += [*table(files, options.runs), ""]
                print("\n".join(lines[-6:]), file=sys.stderr, flush=True)
        finally:
            shutil.rmtree(CACHE, ignore_errors=True)
    print("\n".join(lines))
    if options.update:
        text = options.update.read_text(encoding="utf-8")
        before, rest = text.split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        parts = (before, MARKS[0], "\n\n", "\n".join(lines), "\n", MARKS[1], after)
        options.update.write_text("".join(parts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
