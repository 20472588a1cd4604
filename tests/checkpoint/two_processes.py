"""Trains a model for a step on two processes, in the ways that leave different files.

Run as ``python two_processes.py FOLDER``. In the folder stand ``base.ckpt``, what is to be trained,
and ``batch.pt``, the arguments of its forward pass. Each way leaves a checkpoint there, and
``NAME.pt`` with the weights and logits that it should give.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from panovlm.checkpoint.saving.save import describe_model, embedded_entries
from panovlm.models.model import PanoramaVLM


def step(model: nn.Module, batch: dict[str, Tensor], rank: int) -> torch.optim.Optimizer:
    """Train for a step, each process on its half of the batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    half = {name: tensor[rank : rank + 1] for name, tensor in batch.items()}
    model(**half).loss.backward()
    optimizer.step()
    return optimizer


def keep(folder: Path, name: str, rank: int, model: nn.Module, batch: dict[str, Tensor]) -> None:
    """Write down what a checkpoint of the model should give."""
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    if rank == 0:
        state = {n.removeprefix("model."): t.clone() for n, t in whole.items()}
        torch.save({"state": state, "logits": logits}, folder / f"{name}.pt")


def load(folder: Path) -> PanoramaVLM:
    return PanoramaVLM.from_checkpoint(folder / "base.ckpt")


def entries(model: PanoramaVLM) -> dict[str, Any]:
    return embedded_entries(model, describe_model(model, stage="finetune"))


def shard(model: nn.Module) -> nn.Module:
    """Cut the parameters of a model, its blocks each by itself."""
    for part in (*model.language_model.model.layers, model.vision_backbone, model.resampler_module):
        fully_shard(part)
    return fully_shard(model)


def ddp(folder: Path, rank: int, batch: dict[str, Tensor]) -> None:
    model = load(folder).train()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    step(wrapped, batch, rank)
    if rank == 0:
        saved = {"state_dict": wrapped.state_dict(), "epoch": 1, **entries(model)}
        torch.save(saved, folder / "ddp.ckpt")
    keep(folder, "ddp", rank, model, batch)


def fsdp(folder: Path, rank: int, batch: dict[str, Tensor]) -> None:
    model = load(folder).train()
    extra = entries(model)
    shard(model)
    optimizer = step(model, batch, rank)
    weights, state = get_state_dict(model, optimizer)
    saved = {"model": weights, "optimizer": state, "epoch": 1, **extra}
    dcp.save(saved, checkpoint_id=folder / "fsdp")
    keep(folder, "fsdp", rank, model, batch)


def in_fsdp1(model: PanoramaVLM, **options: Any) -> nn.Module:
    """Put a model into torch's first FSDP, which takes a processor only where it is told to."""
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **options)


def fsdp1(folder: Path, rank: int, batch: dict[str, Tensor]) -> None:
    """Leave the shards of several units, with the optimizer's."""
    model = load(folder).train()
    extra = entries(model)
    blocks = {type(model.language_model.model.layers[0]), type(model.vision_backbone)}
    model = in_fsdp1(model, auto_wrap_policy=ModuleWrapPolicy(blocks), use_orig_params=True)
    optimizer = step(model, batch, rank)
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.SHARDED_STATE_DICT):
        state = FullyShardedDataParallel.optim_state_dict(model, optimizer)
        saved = {"model": model.state_dict(), "optimizer": state, "epoch": 1, **extra}
        dcp.save(saved, checkpoint_id=folder / "fsdp1")
    keep(folder, "fsdp1", rank, model, batch)


def fsdp1_full(folder: Path, rank: int, batch: dict[str, Tensor]) -> None:
    """Leave one whole file of a model whose parameters are one flat one, as is FSDP's default."""
    model = load(folder).train()
    extra = entries(model)
    model = in_fsdp1(model)
    step(model, batch, rank)
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT):
        weights = model.state_dict()
    if rank == 0:
        torch.save({"state_dict": weights, "epoch": 1, **extra}, folder / "fsdp1.ckpt")
    keep(folder, "fsdp1_full", rank, model, batch)


class Module(lightning.LightningModule):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model = load(folder)
        self.entries = entries(self.model)

    def configure_model(self) -> None:
        shard(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return self.model(**batch).loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint.update(self.entries)


def with_lightning(folder: Path, rank: int, batch: dict[str, Tensor]) -> None:
    module = Module(folder)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    half = {name: tensor[rank : rank + 1] for name, tensor in batch.items()}
    trainer.fit(module, DataLoader([half], batch_size=None))
    trainer.save_checkpoint(folder / "run" / "last.ckpt")
    keep(folder, "lightning", rank, module.model, batch)


def run(rank: int, folder: Path) -> None:
    """Be one of the two processes."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "two",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    batch = torch.load(folder / "batch.pt", weights_only=True)
    for way in (ddp, fsdp, fsdp1, fsdp1_full, with_lightning):
        way(folder, rank, batch)
    dist.destroy_process_group()


def main(folder: Path) -> None:
    """Become two processes; what takes long, the imports, has been done by then."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run, args=(rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    left = {process.sentinel: process for process in processes}
    while left:
        for sentinel in wait(left):
            ended = left.pop(sentinel)
            ended.join()
            if ended.exitcode:  # the other one would wait for it
                for process in left.values():
                    process.terminate()
                sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
