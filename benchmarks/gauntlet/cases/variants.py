"""Averaged copies beside live weights, and other implementations' names for a Mamba block."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from benchmarks.gauntlet.case import Case, Made
from benchmarks.gauntlet.cases.descriptions import BARE, asked_for
from benchmarks.gauntlet.stock import (
    Stock,
    contents_of,
    describe,
    document_of,
    state_of,
    write_run,
)
from torch import Tensor

AVERAGES = "Live weights and their average"
DIALECTS = "Dialects of Mamba"
DIRECTIONS = "models.resampler_config.directions"
Choice = Literal["model", "ema"] | None


def averaged(choice: Choice, *, named: bool = False) -> Callable[[Stock, Path], Made]:
    """Write both copies: the average in an entry of its own, or in a module of its own."""

    def make(stock: Stock, folder: Path) -> Made:
        live, average = stock.model(), stock.model(seed=5)
        contents = contents_of(live, inside=False)
        if named:
            contents["state_dict"] |= state_of(average, "ema_model.")
        else:
            contents["state_dict_ema"] = state_of(average, "model.")
        torch.save(contents, folder / "last.ckpt")
        # A document without probe holds for both copies.
        describe(live, folder, beside=document_of(live, probe=False))
        meant = average if choice == "ema" else live
        return Made(folder / "last.ckpt", meant, weights=choice)

    return make


def renamed(rename: Callable[[str], str]) -> Callable[[Stock, Path], Made]:
    def make(stock: Stock, folder: Path) -> Made:
        model = stock.model()
        return Made(write_run(model, folder, prefix=lambda n: "model." + rename(n)), model)

    return make


def mixer(name: str) -> str:
    """Name of transformers' Mamba: the mixer has a place of its own in the block."""
    return re.sub(r"(forward_block|backward_block)\.", r"\1.mixer.", name)


SHARED = ("in_proj.weight", "out_proj.weight")


def one_mixer(state: dict[str, Tensor], wrapper: str = "") -> dict[str, Tensor]:
    """Join two directions that share their projections into Vision Mamba's one mixer."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        forward, backward = ".forward_block.", ".backward_block."
        if forward in name:
            found[name.replace(forward, f".{wrapper}")] = tensor
        elif backward in name:
            head, _, leaf = name.partition(backward)
            if leaf not in SHARED:
                own = "A_b_log" if leaf == "A_log" else re.sub(r"^(\w+)", r"\1_b", leaf)
                found[f"{head}.{wrapper}{own}"] = tensor
        else:
            found[name] = tensor
    return found


def vision_mamba(
    directions: str, wrapper: str = "", *, say: bool = True
) -> Callable[[Stock, Path], Made]:
    """Write bare weights; with ``say``, the user answers all that is asked for."""

    def make(stock: Stock, folder: Path) -> Made:
        model = stock.model(sizes={"directions": directions}, seed=11)
        with torch.no_grad():
            for block in model.resampler_module.resampler.blocks:
                for leaf in SHARED:
                    shared = block.forward_block.get_parameter(leaf)
                    block.backward_block.get_parameter(leaf).copy_(shared)
        state = one_mixer(state_of(model, "model."), wrapper)
        path = write_run(model, folder, state=state, **BARE)
        known = {DIRECTIONS: directions}
        stated = {**known, **asked_for(path, model, known)} if say else {}
        return Made(path, model, stated=stated)

    return make


def mamba_2(stock: Stock, folder: Path) -> Made:
    """One decay per head, which two Mamba mixers cannot compute."""
    model = stock.model()
    state = state_of(model, "model.")
    for name in [name for name in state if name.endswith("dt_proj.bias")]:
        state[name.replace("dt_proj.bias", "dt_bias")] = state.pop(name)
    return Made(write_run(model, folder, state=state), model)


def cases() -> Iterator[Case]:
    """Yield averages with and without a choice, and dialects."""
    for named in (False, True):
        where = "in a module of its own" if named else "in an entry of its own"
        for choice in ("model", "ema", None):
            said = f"{choice} is meant" if choice else "nothing said"
            make = averaged(choice, named=named)
            yield Case(AVERAGES, f"{where}, {said}", make, valid=choice is not None)
    yield Case(DIALECTS, "names of transformers", renamed(mixer), valid=True)
    for wrapper in ("", "mixer."):
        for directions in ("sum", "mean"):
            name = f"Vision Mamba{', in mixer.' if wrapper else ''}, {directions} of directions"
            yield Case(DIALECTS, name, vision_mamba(directions, wrapper), valid=True)
    unsaid = vision_mamba("sum", say=False)
    yield Case(DIALECTS, "Vision Mamba, sum of directions, not stated", unsaid, valid=False)
    yield Case(DIALECTS, "Mamba-2", mamba_2, valid=False)
