"""Damages checkpoints at random and looks at how reading them ends.

Every case has a number, and the number and the reader's name alone decide the damage, so that any
case can be run again.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import re
import resource
import signal
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NamedTuple

import torch
import yaml
from safetensors.torch import save_file

from panovlm.checkpoint.formats import load_tensors, read_attachments, read_header
from panovlm.checkpoint.report.describe import as_json, as_text
from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.saving.save import save_checkpoint
from panovlm.config.schema import LoRASettings
from panovlm.errors import PanoVLMError

SECONDS = 30
"""A case that takes longer counts as a hang; a sound one takes milliseconds."""
MEMORY = 1 << 30
"""How far a case may raise the memory that the process ever used, in bytes."""


# Sound checkpoints ----------------------------------------------------------------------------


def saved() -> dict[str, Any]:
    """Return a small checkpoint with something of everything."""
    generator = torch.Generator().manual_seed(1)
    return {
        "epoch": 3,
        "state_dict": {
            "a": torch.rand(4, 3, generator=generator),
            "b": torch.rand(6, generator=generator).half()[1:],
            "c": torch.ones(()),
            "d": torch.rand(3, 2, generator=generator).T,
        },
        "hyper_parameters": {"lr": 0.1, "size": (2, 3), "names": ["x", None, True], "n": 70000},
        "panovlm_tokenizer": {"f": torch.ones(3, dtype=torch.uint8)},
        "optimizer_states": [{"state": {0: torch.ones(2)}}],
    }


def torch_file(folder: Path, writers: Writers) -> Path:
    torch.save(saved(), folder / "model.ckpt")
    return folder / "model.ckpt"


def legacy_file(folder: Path, writers: Writers) -> Path:
    torch.save(saved(), folder / "model.pt", _use_new_zipfile_serialization=False)
    return folder / "model.pt"


def safetensors_file(folder: Path, writers: Writers) -> Path:
    tensors = {name: tensor.contiguous() for name, tensor in saved()["state_dict"].items()}
    tensors["panovlm_tokenizer/f"] = torch.ones(3, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", {"k": "v"})
    return folder / "model.safetensors"


def index_file(folder: Path, writers: Writers) -> Path:
    save_file({"a": torch.ones(2)}, folder / "1.safetensors")
    torch.save({"b": torch.ones(3)}, folder / "2.bin")
    index = folder / "model.safetensors.index.json"
    weight_map = {"a": "1.safetensors", "b": "2.bin"}
    index.write_text(json.dumps({"metadata": {"total_size": 20}, "weight_map": weight_map}))
    return index


def dcp_folder(folder: Path, writers: Writers) -> Path:
    generator = torch.Generator().manual_seed(2)
    tensors = {
        "model.w": (torch.rand(4, 3, generator=generator), [((0, 0), (2, 3)), ((2, 0), (2, 3))]),
        "model.b": (torch.rand(5, generator=generator).half(), [((0,), (5,))]),
        "optim.m": (torch.ones(2), [((0,), (2,))]),
        "panovlm_tokenizer.t": (torch.ones(3, dtype=torch.uint8), [((0,), (3,))]),
    }
    path = writers.dcp.write(folder / "dcp", tensors, {"epoch": 3, "n.a": [1, {"b": 2.5}]})
    torch.save({"c": (1, 2), "loops": {}}, path / "meta.pt")
    return path


def _zero(folder: Path, writers: Writers, stage: int) -> Path:
    generator = torch.Generator().manual_seed(3)
    shapes = {"a": (4, 3), "b": (5,), "c": (), "still": (3, 3)}
    parameters = {n: torch.rand(s, generator=generator) for n, s in shapes.items()}
    return writers.zero.write(
        folder / "zero",
        parameters,
        stage=stage,
        processes=2,
        frozen=["still"],
        shared={"tied": "a"},
        buffers={"count": torch.tensor(3)},
        client={"panovlm_tokenizer": {"t": torch.ones(3, dtype=torch.uint8)}, "epoch": 3},
    )


def zero_2_folder(folder: Path, writers: Writers) -> Path:
    return _zero(folder, writers, 2)


def zero_3_folder(folder: Path, writers: Writers) -> Path:
    return _zero(folder, writers, 3)


def run_folder(folder: Path, writers: Writers) -> Path:
    """A checkpoint with its document inside, beside it, and the run's settings."""
    model = writers.small.small_model()
    save_checkpoint(model, folder / "best.ckpt")
    run = {"models": model.recipe.models.model_dump(mode="json")}
    (folder / "config.yaml").write_text(yaml.safe_dump(run))
    return folder


def split_folder(folder: Path, writers: Writers) -> Path:
    """PEFT's adapters beside what else was trained, on a language model of its own folder."""
    base = folder / "base"
    model = writers.small.small_model(language_model_name=str(base))
    model.language_model.save_pretrained(base)
    model.add_adapters(LoRASettings.model_validate({"rank": 2, "target_modules": ["q_proj"]}))
    model.language_model.peft_config["default"].base_model_name_or_path = str(base)
    model.language_model.save_pretrained(folder)
    state = {n: t for n, t in model.state_dict().items() if not n.startswith("language_model.")}
    torch.save(state, folder / "non_lora_trainables.bin")
    return folder


def adapted_folder(folder: Path, writers: Writers) -> Path:
    """A whole checkpoint without adapters, and PEFT's folder of them beside it."""
    split_folder(folder, writers)
    save_checkpoint(writers.small.small_model(), folder / "best.ckpt")
    (folder / "lora_weights").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).rename(folder / "lora_weights" / name)
    for file in (folder / "non_lora_trainables.bin", *folder.glob("*.json")):
        file.unlink()
    return folder


@dataclass(frozen=True)
class Writers:
    """The modules that write folders and make models."""

    dcp: ModuleType
    zero: ModuleType
    small: ModuleType


# Damage ---------------------------------------------------------------------------------------

FRAGMENTS = [
    *(bytes([code]) for code in b"}])(.bRtusae\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x93\x94NQ01"),
    b"h\x00", b"h\x01", b"j\xff\xff\xff\xff", b"r\x00\x00\x00\x00", b"K\x00", b"K\xff",
    b"M\xff\xff", b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x8a\xff",
    b"\x85" * 200, b"]" * 200, b"X\xff\xff\xff\x7f", b"\x8c\xff", b"\x8e" + b"\xff" * 8,
    b"cos\nsystem\n", b"ctorch\nSize\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"G" + b"\x7f" * 8,
    pickle.dumps({"a": [1, (2,)]}, 2), b"X\x02\x00\x00\x00\xed\xa0", b"PK\x03\x04", b"PK\x05\x06",
]  # fmt: skip
NUMBERS = [
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
]
WORDS = [
    b"-1", b"0", b"1e9", b"99999999999999999999", b"9223372036854775807", b"null", b"[]", b"{}",
    b'"../x"', b'"/etc/passwd"', b'""', b'"\\ud800"', b'"F64"', b'"a"', b"NaN", b"true", b"[[1]]",
]  # fmt: skip


def damage(data: bytes, rng: random.Random, described: list[tuple[int, int]]) -> bytes:
    """Return ``data`` with some of it changed.

    Args:
        data: a file.
        rng: decides what and where.
        described: where in the file its description lies; half of the damage goes there.
    """
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8, 30))):
        if not changed:
            break
        low, high = rng.choice(described) if described and rng.random() < 0.5 else (0, len(data))
        at = rng.randrange(low, max(high, low + 1)) % len(changed)
        kind = rng.randrange(9)
        width = rng.choice((1, 2, 4, 8))
        if kind == 0:
            changed[at] = rng.randrange(256)
        elif kind == 1:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            number = rng.choice(NUMBERS) & (1 << 8 * width) - 1
            changed[at : at + width] = number.to_bytes(width, "little")
        elif kind == 3:
            fragment = rng.choice(FRAGMENTS)
            changed[at : at + len(fragment)] = fragment
        elif kind == 4:
            _replace_word(changed, at, rng.choice(WORDS))
        elif kind == 5:
            other = rng.randrange(len(changed))
            changed[at : at + width * 8] = changed[other : other + width * 8]
        elif rng.random() < 0.7:
            continue  # what follows moves the rest of the file, which archives rarely survive
        elif kind == 6:
            del changed[at : at + rng.choice((1, 4, 50, len(changed)))]
        elif kind == 7:
            changed[at:at] = rng.choice(FRAGMENTS)
        else:
            other = rng.randrange(len(changed))
            changed[at:at] = changed[other : other + rng.choice((1, 4, 50))]
    return bytes(changed)


def _replace_word(changed: bytearray, at: int, word: bytes) -> None:
    """Put ``word`` in the place of the next number or text of a JSON document."""
    found = re.compile(rb'-?\d+|"[^"]*"').search(changed, at)
    if found is not None and len(found[0]) < 40:
        changed[found.start() : found.end()] = word


def described_parts(name: str, data: bytes) -> list[tuple[int, int]]:
    """Return where in a file its description lies."""
    if name.endswith((".metadata", ".json", ".yaml", "latest")):
        return [(0, len(data))]
    if name.endswith(".safetensors"):
        return [(0, 8 + int.from_bytes(data[:8], "little"))]
    if data[:2] != b"PK":
        return [(0, len(data) * 3 // 4)]
    found: list[tuple[int, int]] = []
    for end in re.finditer(rb"PK\x05\x06", data):  # a file of DCP is several archives
        try:
            with zipfile.ZipFile(io.BytesIO(data[: end.end() + 18])) as archive:
                entries = archive.infolist()
        except zipfile.BadZipFile:
            continue
        size = len(data[: end.end() + 18])
        for entry in entries:
            if entry.filename.endswith("/data.pkl"):
                start = entry.header_offset
                found.append((start + 30, start + 30 + len(entry.filename) + entry.file_size + 64))
        found.append((max(0, end.start() - 200), size))
    return found


# Outcomes -------------------------------------------------------------------------------------


@dataclass
class Result:
    """How the cases of one reader ended.

    Attributes:
        outcomes: number of cases by outcome: ``read``, ``refused``, or the fault.
        faults: number of the case → what went wrong.
        slowest: seconds of the slowest case, and its number.
        memory: bytes by which the cases raised the memory that the process ever used.
    """

    outcomes: Counter[str] = field(default_factory=Counter[str])
    faults: dict[int, str] = field(default_factory=dict[int, str])
    slowest: tuple[float, int] = (0.0, -1)
    memory: int = 0


class Hang(BaseException):
    """A case took too long. No handler of ordinary errors may take it for one."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Stop what takes too long."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(path: Path) -> str:
    """Read everything; return ``read`` or ``refused``, let any other error through."""
    try:
        header = read_header(path)
        tensors = load_tensors(path)
        attachments = read_attachments(path)
    except PanoVLMError as error:
        assert str(path) in str(error) or str(path.parent) in str(error), "names no path"
        return "refused"
    shapes = {name: info.shape for name, info in header.tensors.items()}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    assert attachments.keys() == header.attachments.keys()
    for tensor in tensors.values():
        if tensor.numel() < 10_000:
            tensor.clone()  # touches every byte
    return "read"


def resolution(path: Path) -> str:
    """Resolve everything that stands in a folder; otherwise as :func:`outcome`."""
    try:
        found = resolve(path)
    except PanoVLMError as error:
        assert str(path) in str(error), f"names no path: {error}"
        return "refused"
    as_text(found)
    json.dumps(as_json(found))
    return "refused" if found.conflicts else "read"


class Reader(NamedTuple):
    """What makes a sound checkpoint, and what reads it."""

    make: Callable[[Path, Writers], Path]
    read: Callable[[Path], str]


READERS: dict[str, Reader] = {
    "torch": Reader(torch_file, outcome),
    "torch before 1.6": Reader(legacy_file, outcome),
    "safetensors": Reader(safetensors_file, outcome),
    "index": Reader(index_file, outcome),
    "DCP": Reader(dcp_folder, outcome),
    "ZeRO-2": Reader(zero_2_folder, outcome),
    "ZeRO-3": Reader(zero_3_folder, outcome),
    "run folder": Reader(run_folder, resolution),
    "adapters": Reader(adapted_folder, resolution),
    "split": Reader(split_folder, resolution),
}


def fuzz(name: str, cases: range | list[int], folder: Path, writers: Writers) -> Result:
    """Run cases of one reader.

    Args:
        name: of the reader.
        cases: their numbers.
        folder: an empty folder to work in.
        writers: the modules that write folders.
    """
    torch.serialization.set_crc32_options(False)  # damage shall get past the checksums
    try:
        path = READERS[name].make(folder, writers)
    finally:
        torch.serialization.set_crc32_options(True)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    if path.suffix == ".json":
        files = [path] * 4 + sorted(path.parent.iterdir())
    sound = {file: file.read_bytes() for file in files}
    parts = {file: described_parts(file.name, data) for file, data in sound.items()}
    read = READERS[name].read
    assert read(path) == "read"
    result, before = Result(), _memory()
    for case in cases:
        rng = random.Random(f"{name} {case}")
        file = rng.choice(files)
        file.write_bytes(damage(sound[file], rng, parts[file]))
        start, used = time.perf_counter(), _memory()
        try:
            with time_limit(SECONDS):
                ended = read(path)
        except Hang:
            ended = "hang"
        except (Exception, MemoryError) as error:  # noqa: BLE001 - the very thing that is looked for
            ended = f"{type(error).__name__}: {error}"
        if _memory() - used > MEMORY:
            ended = f"{(_memory() - used) >> 20} MiB of memory"
        result.slowest = max(result.slowest, (time.perf_counter() - start, case))
        file.write_bytes(sound[file])
        result.outcomes[ended] += 1
        if ended not in ("read", "refused"):
            result.faults[case] = ended
    result.memory = _memory() - before
    return result


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
