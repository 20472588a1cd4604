"""Files that were made to harm whoever opens them."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from benchmarks.gauntlet.case import Case, Made
from benchmarks.gauntlet.cases.containers import bare_distributed, shards
from benchmarks.gauntlet.stock import Stock, contents_of, describe, state_of

GROUP = "Hostile files"
BOMB = 256 << 20


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def planted(*, legacy: bool = False, among_weights: bool = False) -> Callable[[Stock, Path], Made]:
    """Write a file that runs code where pickles are simply loaded."""

    def make(stock: Stock, folder: Path) -> Made:
        model, canary = stock.model(), folder / "canary"
        contents = contents_of(model)
        place = contents["state_dict"] if among_weights else contents
        place["callbacks"] = Canary(canary)
        torch.save(contents, folder / "best.ckpt", _use_new_zipfile_serialization=not legacy)
        describe(model, folder)
        return Made(folder / "best.ckpt", model, canary=canary)

    return make


def planted_in_dcp(stock: Stock, folder: Path) -> Made:
    model, canary = stock.model(), folder / "canary"
    path = bare_distributed(model, folder)
    table = path / ".metadata"
    metadata = pickle.loads(table.read_bytes())
    metadata.planner_data["more"] = Canary(canary)
    table.write_bytes(pickle.dumps(metadata, protocol=4))
    return Made(path, model, canary=canary)


def zip_bomb(stock: Stock, folder: Path) -> Made:
    """A storage that is packed small and unpacks to 256 MiB."""
    model = stock.model()
    torch.save(contents_of(model), folder / "whole.pt")
    with (
        zipfile.ZipFile(folder / "whole.pt") as whole,
        zipfile.ZipFile(folder / "best.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for info in whole.infolist():
            data = whole.read(info)
            bomb.writestr(info.filename, bytes(BOMB) if info.filename.endswith("/data/5") else data)
    (folder / "whole.pt").unlink()
    describe(model, folder)
    return Made(folder / "best.ckpt", model)


def absurd_header(stock: Stock, folder: Path) -> Made:
    """A safetensors file that says that its header has 2**60 bytes."""
    model = stock.model()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}" * 100)
    describe(model, folder)
    return Made(path, model)


def overlapping(stock: Stock, folder: Path) -> Made:
    """Every tensor of a safetensors file lies in the same few bytes."""
    model = stock.model()
    header: dict[str, Any] = {
        name: {"dtype": "F32", "shape": list(t.shape), "data_offsets": [0, 4 * t.numel()]}
        for name, t in state_of(model).items()
    }
    text = json.dumps(header).encode()
    size = max(entry["data_offsets"][1] for entry in header.values())
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    describe(model, folder)
    return Made(path, model)


def outside(kind: str) -> Callable[[Stock, Path], Made]:
    """An index that leads out of its folder, by ``..``, by an absolute path or by a link."""

    def make(stock: Stock, folder: Path) -> Made:
        model, inside = stock.model(), folder / "inside"
        inside.mkdir()
        shards(model, inside)
        secret = min(inside.glob("*.safetensors"))
        away = folder / secret.name
        secret.rename(away)
        if kind == "link":
            secret.symlink_to(away)
        else:
            path = inside / "model.safetensors.index.json"
            index = json.loads(path.read_text())
            there = f"../{away.name}" if kind == ".." else str(away)
            for name, file in index["weight_map"].items():
                index["weight_map"][name] = there if file == secret.name else file
            path.write_text(json.dumps(index))
        return Made(inside, model)

    return make


MAKERS: dict[str, Callable[[Stock, Path], Made]] = {
    "pickle that runs code": planted(),
    "pickle that runs code, among the weights": planted(among_weights=True),
    "pickle that runs code, before torch 1.6": planted(legacy=True),
    "pickle that runs code, table of a DCP folder": planted_in_dcp,
    "zip bomb": zip_bomb,
    "safetensors header of 2**60 bytes": absurd_header,
    "safetensors tensors that overlap": overlapping,
    "index leads out of the folder by ..": outside(".."),
    "index leads out of the folder by an absolute path": outside("absolute"),
    "shard is a link out of the folder": outside("link"),
}


def cases() -> Iterator[Case]:
    """Yield files that run code, fill the memory or reach for other files."""
    for name, make in MAKERS.items():
        yield Case(GROUP, name, make, valid=False)
