"""Right checkpoints in every container."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from benchmarks.gauntlet.case import Case, Made
from benchmarks.gauntlet.stock import Stock, contents_of, describe, state_of, write_run
from safetensors.torch import save_file

from benchmarks import zero_writer
from panovlm.checkpoint.find.locate import SIDECAR
from panovlm.checkpoint.saving.convert import Target, convert
from panovlm.checkpoint.saving.save import describe_model, embedded_entries
from panovlm.models.model import PanoramaVLM

GROUP = "Containers"
Writer = Callable[[PanoramaVLM, Path], Path]


def torch_file(name: str, *, bare: bool = False, legacy: bool = False) -> Writer:
    def write(model: PanoramaVLM, folder: Path) -> Path:
        if not bare:
            return write_run(model, folder, name=name, legacy=legacy)
        state = state_of(model)
        torch.save(state, folder / name, _use_new_zipfile_serialization=not legacy)
        describe(model, folder)
        return folder / name

    return write


def untied(model: PanoramaVLM) -> dict[str, torch.Tensor]:
    """Return a model's tensors without second names and shared memory, as safetensors wants."""
    tied = "language_model.lm_head.weight"
    return {name: t.clone().contiguous() for name, t in state_of(model).items() if name != tied}


def safetensors_file(model: PanoramaVLM, folder: Path) -> Path:
    save_file(untied(model), folder / "model.safetensors", {"format": "pt"})
    describe(model, folder)
    return folder / "model.safetensors"


def shards(model: PanoramaVLM, folder: Path, kind: str = "safetensors", count: int = 3) -> Path:
    """Write shards and their index as transformers does."""
    state, stem = untied(model), {"safetensors": "model", "bin": "pytorch_model"}[kind]
    where: dict[str, str] = {}
    for number in range(count):
        name = f"{stem}-{number + 1:05}-of-{count:05}.{kind}"
        part = {key: state[key] for key in sorted(state)[number::count]}
        save_file(part, folder / name) if kind == "safetensors" else torch.save(part, folder / name)
        where |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
    describe(model, folder)
    return folder


def hugging_face(model: PanoramaVLM, folder: Path, size: str = "1GB") -> Path:
    """Write what transformers and its tokenizers write, and nothing of PanoVLM's own."""
    model.save_pretrained(folder, max_shard_size=size)
    assert model.tokenizer is not None
    model.tokenizer.save_pretrained(folder)
    return folder


def converted(to: Target, name: str) -> Writer:
    def write(model: PanoramaVLM, folder: Path) -> Path:
        source = write_run(model, folder / "source", hyper=None)
        convert(source, folder / name, to=to, max_shard_size=40_000)
        return folder / name

    return write


def distributed(model: PanoramaVLM, folder: Path, name: str = "last.ckpt") -> Path:
    """Write a folder of torch's distributed checkpoints, as Lightning lays it out."""
    saved = contents_of(model)
    target = folder / name
    dcp.save({"state_dict": saved.pop("state_dict")}, checkpoint_id=target, no_dist=True)
    torch.save(saved, target / "meta.pt")
    describe(model, folder)
    return target


def bare_distributed(model: PanoramaVLM, folder: Path) -> Path:
    dcp.save({"model": state_of(model)}, checkpoint_id=folder / "step7", no_dist=True)
    describe(model, folder / "step7")
    return folder / "step7"


def zero(stage: int) -> Writer:
    """Return a writer of DeepSpeed's folders for a stage of ZeRO, two processes."""

    def write(model: PanoramaVLM, folder: Path) -> Path:
        parameters = {f"model.{n}": p.detach() for n, p in model.named_parameters()}
        state = state_of(model, "model.")
        first = {t.data_ptr(): n for n, t in parameters.items()}
        shared = {
            n: first[t.data_ptr()]
            for n, t in state.items()
            if n not in parameters and t.data_ptr() in first
        }
        client: dict[str, Any] = {"epoch": 1, **embedded_entries(model, describe_model(model))}
        return zero_writer.write(
            folder / "last.ckpt",
            parameters,
            stage=stage,
            processes=2,
            shared=shared,
            buffers={n: t for n, t in state.items() if n not in {*parameters, *shared}},
            client=client,
            tag="checkpoint",
            dtype=torch.float32,
        )

    return write


def run_folder(model: PanoramaVLM, folder: Path) -> Path:
    write_run(model, folder)
    (folder / "last.ckpt").write_bytes((folder / "best.ckpt").read_bytes())
    return folder


def newest_cut_off(model: PanoramaVLM, folder: Path) -> Path:
    """The newest file was not finished when the training was killed."""
    path = write_run(model, folder, name="step100.ckpt")
    (folder / "step200.ckpt").write_bytes(path.read_bytes()[:50_000])
    return folder


def moved(model: PanoramaVLM, folder: Path) -> Path:
    """Moved into another folder under another name, the way files travel; nothing beside it."""
    path = write_run(model, folder / "a")
    (folder / "llava_mlp_depth9").mkdir()
    return path.rename(folder / "llava_mlp_depth9" / "mlp_512_qwen.ckpt")


def two_runs(model: PanoramaVLM, folder: Path) -> Path:
    """Two checkpoints of different models in one folder, each with a document of its own."""
    path = write_run(model, folder, name="mine.ckpt")
    (folder / SIDECAR).rename(folder / "mine.ckpt.metadata.json")
    return path


WRITERS: dict[str, Writer] = {
    "torch zip, .pt": torch_file("model.pt"),
    "torch zip, bare state dict, .pth": torch_file("model.pth", bare=True),
    "torch before 1.6, .ckpt": torch_file("best.ckpt", legacy=True),
    "torch before 1.6, bare, .bin": torch_file("pytorch_model.bin", bare=True, legacy=True),
    ".bin": torch_file("pytorch_model.bin", bare=True),
    "safetensors": safetensors_file,
    "sharded safetensors": shards,
    "sharded .bin": lambda model, folder: shards(model, folder, "bin"),
    "Hugging Face folder": hugging_face,
    "Hugging Face folder, sharded": lambda m, f: hugging_face(m, f, "60KB"),
    "converted to safetensors": converted("safetensors", "model.safetensors"),
    "converted to shards": converted("sharded", "out"),
    "converted to a Hugging Face folder": converted("huggingface", "out"),
    "converted for Lightning": converted("lightning", "out.ckpt"),
    "DCP folder": bare_distributed,
    "DCP folder by Lightning (FSDP)": distributed,
    "DeepSpeed ZeRO-1": zero(1),
    "DeepSpeed ZeRO-2": zero(2),
    "DeepSpeed ZeRO-3": zero(3),
    "run folder, best and last": run_folder,
    "run folder, newest file cut off": newest_cut_off,
    "moved and renamed misleadingly": moved,
    "document of its own beside it": two_runs,
}


def case(name: str, writer: Writer) -> Case:
    def make(stock: Stock, folder: Path) -> Made:
        model = stock.model()
        return Made(writer(model, folder), model)

    return Case(GROUP, name, make, valid=True)


def cases() -> Iterator[Case]:
    """Yield one case for each container."""
    for name, writer in WRITERS.items():
        yield case(name, writer)
