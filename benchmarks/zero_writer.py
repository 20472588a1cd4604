"""Writes folders as DeepSpeed does, from what its ``zero_to_fp32.py`` expects to find.

For tests and benchmarks, which have no DeepSpeed.

Each process keeps in single precision what it updates. Stages 1 and 2 lay the parameters of a
group in a row, fill it up to a multiple of twice the number of processes, and cut it; the last
process leaves the filling away when it saves. Stage 3 fills up and cuts each parameter by itself.
What is filled up is NaN here, so that a reader which takes it for weights does not go unnoticed.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NAN = float("nan")


class ZeroStageEnum(enum.IntEnum):
    """A class of the writer that no reader has."""

    gradients = 2
    weights = 3


class LossScaler:
    """Another one."""


def write(
    folder: Path,
    parameters: Mapping[str, Tensor],
    *,
    stage: int,
    processes: int,
    groups: Sequence[Sequence[str]] | None = None,
    frozen: Sequence[str] = (),
    buffers: Mapping[str, Tensor] | None = None,
    shared: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    tag: str = "global_step7",
    prefix: str = "",
    strip: bool = True,
    subgroups: int = 2,
    client: Mapping[str, Any] | None = None,
    older: bool = False,
    shares: bool = True,
) -> Path:
    """Write a folder and return it.

    Args:
        parameters: all of them in single precision, by name.
        stage: of ZeRO.
        groups: names of those that are trained, for each group of the optimizer.
        frozen: names of those that are not.
        buffers: of the module.
        shared: second name of a parameter → its first one.
        dtype: of the module.
        prefix: of the file names (``bf16_``).
        strip: whether the last process leaves the filling away.
        subgroups: into how many rows stage 3 lays what a process keeps.
        client: what the caller saves beside.
        older: leave out what versions before 0.8 did not write.
        shares: whether the processes leave theirs.
    """
    trained = [name for name in parameters if name not in frozen]
    groups = groups or [trained]
    states = folder / tag
    states.mkdir(parents=True)
    (folder / "latest").write_text(tag)
    rows = _stage_3(parameters, groups, processes, subgroups) if stage == 3 else None
    rows = rows or _stage_2(parameters, groups, processes, strip)
    shapes = [OrderedDict((n, parameters[n].shape) for n in group) for group in groups]
    for rank in range(processes):
        common = {
            "buffer_names": list(buffers or {}),
            "optimizer": None,
            "param_shapes": shapes,
            "lr_scheduler": {"last_epoch": 3},
            "sparse_tensor_module_names": set(),
            "skipped_steps": 0,
            "global_steps": 7,
            "global_samples": 56,
            "dp_world_size": processes,
            "mp_world_size": 1,
            "ds_config": {"zero_optimization": {"stage": stage}, "bf16": {"enabled": True}},
            "ds_version": "0.16.5",
            **(client or {}),
        }
        if not older:
            common["shared_params"] = dict(shared or {})
            common["frozen_param_shapes"] = OrderedDict((n, parameters[n].shape) for n in frozen)
            common["frozen_param_fragments"] = OrderedDict(
                (n, _share(stored, rank, processes) if stage == 3 else stored)
                for n, stored in ((n, parameters[n].to(dtype)) for n in frozen)
            )
        module = {name: tensor.to(dtype) for name, tensor in parameters.items()}
        if stage == 3:
            module = {name: torch.empty(0, dtype=dtype) for name in parameters}
        module = {**module, **{s: module[first] for s, first in (shared or {}).items()}}
        common["module"] = OrderedDict({**module, **(buffers or {})})
        if stage == 3:
            torch.save(common, states / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        elif rank == 0:
            torch.save(common, states / "mp_rank_00_model_states.pt")
        key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
        own = {
            "loss_scaler": LossScaler(),
            "dynamic_loss_scale": False,
            "overflow": False,
            "base_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}},
            "zero_stage": ZeroStageEnum.weights if stage == 3 else ZeroStageEnum.gradients,
            "partition_count": processes if stage == 3 else [processes] * len(groups),
            key: rows[rank],
        }
        if shares:
            torch.save(
                {"optimizer_state_dict": own, "ds_config": {}, "ds_version": "0.16.5"},
                states / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt",
            )
    return folder


def _stage_2(
    parameters: Mapping[str, Tensor], groups: Sequence[Sequence[str]], processes: int, strip: bool
) -> list[list[Tensor]]:
    kept: list[list[Tensor]] = [[] for _ in range(processes)]
    for group in groups:
        row = torch.cat([parameters[name].reshape(-1) for name in group])
        filling = -len(row) % (2 * processes)
        shares = torch.cat([row, torch.full((filling,), NAN)]).chunk(processes)
        for rank, share in enumerate(shares):
            last = rank == processes - 1 and strip
            kept[rank].append(share[: max(0, len(share) - filling * last)].clone())
    return kept


def _stage_3(
    parameters: Mapping[str, Tensor],
    groups: Sequence[Sequence[str]],
    processes: int,
    subgroups: int,
) -> list[list[Tensor]]:
    kept: list[list[Tensor]] = []
    for rank in range(processes):
        shares = [_share(parameters[n], rank, processes) for group in groups for n in group]
        size = -(-len(shares) // subgroups)
        kept.append([torch.cat(shares[i : i + size]) for i in range(0, len(shares), size)])
    return kept


def _share(tensor: Tensor, rank: int, processes: int) -> Tensor:
    """Return one process' share of a tensor, filled up to the length of the others."""
    flat = tensor.reshape(-1)
    filled = torch.cat([flat, torch.full((-len(flat) % processes,), NAN, dtype=tensor.dtype)])
    return filled.chunk(processes)[rank].clone()
