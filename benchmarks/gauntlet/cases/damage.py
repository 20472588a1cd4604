"""Files that are cut off, incomplete, mixed up or something else than they seem."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from benchmarks.gauntlet.case import Case, Made
from benchmarks.gauntlet.cases.containers import (
    Writer,
    bare_distributed,
    distributed,
    safetensors_file,
    shards,
    torch_file,
    zero,
)
from benchmarks.gauntlet.stock import Stock, describe, state_of, write_run
from safetensors.torch import load_file, save_file

from panovlm.models.model import PanoramaVLM

GROUP = "Damaged files"
Damage = Callable[[Path], None]
INDEX = "model.safetensors.index.json"


def case(name: str, writer: Writer, damage: Damage) -> Case:
    def make(stock: Stock, folder: Path) -> Made:
        model = stock.model()
        path = writer(model, folder)
        damage(path)
        return Made(path, model)

    return Case(GROUP, name, make, valid=False)


def cut(share: float) -> Damage:
    def damage(path: Path) -> None:
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])

    return damage


def become(content: bytes) -> Damage:
    return lambda path: path.write_bytes(content) and None


def flip(path: Path) -> None:
    """Turn the bits of 64 bytes in the middle: a weight's values, in any container here."""
    whole = bytearray(path.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 64] = bytes(255 - b for b in whole[middle : middle + 64])
    path.write_bytes(whole)


def below(pattern: str, damage: Damage, which: int = 0) -> Damage:
    """Damage a file of a folder."""
    return lambda path: damage(sorted(path.glob(pattern))[which])


def unlink(path: Path) -> None:
    path.unlink()


def swap_shards(folder: Path) -> None:
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    mine, theirs = first.read_bytes(), second.read_bytes()
    first.write_bytes(theirs)
    second.write_bytes(mine)


def wrong_index(folder: Path) -> None:
    """The index says that one tensor is in another shard."""
    path = folder / INDEX
    index = json.loads(path.read_text())
    name = min(index["weight_map"])
    index["weight_map"][name] = max(index["weight_map"].values())
    path.write_text(json.dumps(index))


def short_index(folder: Path) -> None:
    """The index does not list one tensor that a shard holds."""
    path = folder / INDEX
    index = json.loads(path.read_text())
    del index["weight_map"]["projector.linear.weight"]
    path.write_text(json.dumps(index))


def shard_of_another_save(folder: Path) -> None:
    path = min(folder.glob("*.safetensors"))
    tensors = {n: t + 1 if t.is_floating_point() else t for n, t in load_file(path).items()}
    save_file(tensors, path)


def shell(model: PanoramaVLM, folder: Path) -> Path:
    """Saved under ZeRO-3 without gathering; the shares stand in a folder beside it."""
    zero(3)(model, folder)
    state = {
        n: torch.empty(0) if t.is_floating_point() else t
        for n, t in state_of(model, "model.").items()
    }
    return write_run(model, folder, name="gathered.ckpt", state=state)


def partly_shell(model: PanoramaVLM, folder: Path) -> Path:
    state = {
        n: torch.empty(0) if "language_model" in n else t
        for n, t in state_of(model, "model.").items()
    }
    return write_run(model, folder, state=state)


def lone_projector(model: PanoramaVLM, folder: Path) -> Path:
    """A part of a model, with everything that describes the whole."""
    state = {n: t for n, t in state_of(model, "model.").items() if "projector" in n}
    return write_run(model, folder, state=state)


def optimizer_only(model: PanoramaVLM, folder: Path) -> Path:
    torch.save({"optimizer_states": [{"state": {}}], "epoch": 1}, folder / "best.ckpt")
    describe(model, folder)
    return folder / "best.ckpt"


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
PAGE = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>"
CKPT = torch_file("best.ckpt")


def cases() -> Iterator[Case]:
    """Yield damaged files of every container."""
    for share in (0.1, 0.5, 0.99):
        yield case(f"torch zip, first {share:.0%}", CKPT, cut(share))
        yield case(f"safetensors, first {share:.0%}", safetensors_file, cut(share))
    legacy = torch_file("best.ckpt", legacy=True)
    yield case("torch before 1.6, first 50%", legacy, cut(0.5))
    yield case("torch zip, 64 bytes turned", CKPT, flip)
    yield case("safetensors, 64 bytes turned", safetensors_file, flip)
    yield case("empty file", CKPT, become(b""))
    yield case("pointer of Git LFS", CKPT, become(POINTER))
    yield case("error page of a download", safetensors_file, become(PAGE))
    yield case("a shard is missing", shards, below("*.safetensors", unlink))
    yield case("a shard is cut off", shards, below("*.safetensors", cut(0.7)))
    yield case("two shards changed names", shards, swap_shards)
    yield case("a shard of another save", shards, shard_of_another_save)
    yield case("index names the wrong shard", shards, wrong_index)
    yield case("index leaves a tensor out", shards, short_index)
    yield case("index is cut off", shards, below(INDEX, cut(0.5)))
    yield case("DCP folder without a share", bare_distributed, below("*.distcp", unlink))
    yield case("DCP folder, share cut off", distributed, below("*.distcp", cut(0.6)))
    yield case("DCP folder without its table", distributed, below(".metadata", unlink))
    share = "checkpoint/*optim_states.pt"
    yield case("ZeRO-2 folder without a share", zero(2), below(share, unlink))
    yield case("ZeRO-3 folder without a share", zero(3), below(share, unlink, 1))
    yield case("ZeRO-3 folder, share cut off", zero(3), below(share, cut(0.6)))
    yield case("shell of ZeRO-3", shell, lambda path: None)
    yield case("language model is a shell", partly_shell, lambda path: None)
    yield case("projector alone", lone_projector, lambda path: None)
    yield case("optimizer alone", optimizer_only, lambda path: None)
