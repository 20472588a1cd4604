"""Computes overlap losses in one process with a whole batch, and in two with half of it each.

Run as ``python two_halves.py FOLDER``. In the folder stand ``base.ckpt``, the model, ``pixels.pt``,
views of a batch, and ``cases.pt``, changes of the model's settings. There it leaves ``whole.pt``
and for each of :data:`CUTS` ``CUT-0.pt`` and ``CUT-1.pt``: for every case the loss and the
gradients of the weights.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from panovlm.config.schema import StageConfig
from panovlm.models.model import PanoramaVLM
from panovlm.training.module import StageModule

CUTS = (2, 3)
"""How much of a batch of four the first process takes."""
Found = dict[str, dict[str, Any]]


class Step(nn.Module):
    """The training step as a forward pass, as Lightning hands it to DDP."""

    def __init__(self, module: StageModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.module.training_step(batch, 0)


def compute(folder: Path, rows: slice, processes: int) -> Found:
    """Return loss and gradients of every case, of these rows of the batch."""
    warnings.simplefilter("ignore")
    pixels = torch.load(folder / "pixels.pt", weights_only=True)[rows]
    batch = {"pixel_values": pixels, "source": [""] * len(pixels)}
    model = PanoramaVLM.from_checkpoint(folder / "base.ckpt")
    usual = model.recipe
    found: Found = {}
    for case, changes in torch.load(folder / "cases.pt", weights_only=True).items():
        models = usual.models.model_copy(update=changes)
        model.set_recipe(usual.model_copy(update={"models": models}))
        model.zero_grad()
        settings = StageConfig(batch_size=3, accumulate_grad_batches=1)
        module = StageModule(
            model, stage="vision", settings=settings, total_steps=1, describe=lambda *_: None
        )
        step: nn.Module = Step(module)
        if processes > 1:
            step = DistributedDataParallel(step, find_unused_parameters=True)
        step(batch).backward()
        module.on_before_optimizer_step(None)
        with torch.no_grad():
            loss = module._loss(batch, "train")
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found[case] = {"loss": loss, **{name: grad.clone() for name, grad in gradients.items()}}
    return found


def half(rank: int, folder: Path) -> None:
    """Be one of the two processes."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    for cut in CUTS:
        rows = slice(0, cut) if rank == 0 else slice(cut, None)
        torch.save(compute(folder, rows, 2), folder / f"{cut}-{rank}.pt")
    dist.destroy_process_group()


def main(folder: Path) -> None:
    """Compute both; the imports have been done before the processes part."""
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=half, args=(rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    torch.save(compute(folder, slice(None), 1), folder / "whole.pt")
    for process in processes:
        process.join(60)
        if process.exitcode != 0:
            for other in processes:
                other.kill()
            sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
