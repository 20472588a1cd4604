"""Whole files with the wrong weights in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from benchmarks.gauntlet.case import Case, Made
from benchmarks.gauntlet.stock import Stock, state_of, write_run
from torch import Tensor

GROUP = "Wrong weights"
State = dict[str, Tensor]
Change = Callable[[State, Stock], None]
RESAMPLER = "model.resampler_module.resampler."
BLOCK = f"{RESAMPLER}blocks.0."
PROJECTOR = "model.projector.linear.weight"
LAYER = "model.language_model.model.layers."
TABLE = "model.language_model.model.embed_tokens.weight"
HEAD = "model.language_model.lm_head.weight"


def without(*parts: str) -> Change:
    def change(state: State, _: Stock) -> None:
        for name in [n for n in state if any(part in n for part in parts)]:
            del state[name]

    return change


def swap(one: str, other: str) -> Change:
    """Exchange the tensors below two names."""

    def change(state: State, _: Stock) -> None:
        for name in [n for n in state if n.startswith(one)]:
            twin = other + name.removeprefix(one)
            state[name], state[twin] = state[twin], state[name]

    return change


def replace(part: str, make: Callable[[Tensor], Tensor]) -> Change:
    def change(state: State, _: Stock) -> None:
        for name in [n for n in state if part in n]:
            state[name] = make(state[name])

    return change


def taken_from(seed: int, *parts: str) -> Change:
    """Take components from another run of the same sizes."""

    def change(state: State, stock: Stock) -> None:
        other = state_of(stock.model(seed=seed), "model.")
        state |= {n: t for n, t in other.items() if any(part in n for part in parts)}

    return change


def added(name: str, *shape: int) -> Change:
    return lambda state, _: state.update({name: torch.ones(shape)})


def alias(state: State, _: Stock) -> None:
    """A second name of the projector, as the original writes it, with other values."""
    state["model.vision_to_language_projection.weight"] = state[PROJECTOR] + 1


def untie(state: State, _: Stock) -> None:
    """The two names of a tied table hold different values."""
    state[HEAD] = state[TABLE] + 0.5


def permuted(state: State, _: Stock) -> None:
    """The halves of in_proj, which make input and gate, are exchanged in every block."""
    for name in [n for n in state if n.endswith("in_proj.weight")]:
        state[name] = state[name].roll(len(state[name]) // 2, 0)


def vocabulary(rows: int) -> Change:
    def resize(tensor: Tensor) -> Tensor:
        grown = torch.cat([tensor, torch.zeros(max(rows, 0), tensor.shape[1])])
        return grown[: len(tensor) + rows].clone()

    def change(state: State, _: Stock) -> None:
        for name in (TABLE, HEAD):
            state[name] = resize(state[name])

    return change


def one_value(state: State, _: Stock) -> None:
    """A single large entry is not a number."""
    state[PROJECTOR] = state[PROJECTOR].clone()
    state[PROJECTOR][0, 0] = float("nan")


def rounded(tensor: Tensor) -> Tensor:
    """Through eight bits and back."""
    scale = tensor.abs().max() / 7
    return (tensor / scale).round() * scale


CHANGES: dict[str, Change] = {
    "one tensor missing": without("projector.linear.bias"),
    "a block missing": without("resampler.blocks.1."),
    "the first block missing": without("resampler.blocks.0."),
    "resampler missing": without("resampler_module."),
    "projector missing": without("model.projector."),
    "tower missing": without("vision_backbone.encoder."),
    "language model missing": without("language_model."),
    "vision norm missing": without("vision_backbone.norm."),
    "unknown tensor": added("model.resampler_module.gate.weight", 4, 4),
    "unknown component": added("model.depth_head.weight", 4, 4),
    "another block": added(f"{RESAMPLER}blocks.2.norm.weight", 48),
    "projector transposed": replace(PROJECTOR, lambda t: t.t().contiguous()),
    "projector of another width": replace(PROJECTOR, lambda t: torch.ones(24, 50)),
    "blocks exchanged": swap(f"{RESAMPLER}blocks.0.", f"{RESAMPLER}blocks.1."),
    "directions exchanged": swap(f"{BLOCK}forward_block.", f"{BLOCK}backward_block."),
    "input and gate exchanged": permuted,
    "language layers exchanged": swap(f"{LAYER}0.", f"{LAYER}1."),
    "keys and values exchanged": swap(f"{LAYER}0.self_attn.k_proj.", f"{LAYER}0.self_attn.v_proj."),
    "resampler of another run": taken_from(4, "resampler_module."),
    "projector of another run": taken_from(4, "model.projector."),
    "tower of another run": taken_from(4, "vision_backbone."),
    "language model of another run": taken_from(4, "language_model."),
    "resampler at its initial values": replace(BLOCK, torch.zeros_like),
    "tied table with two values": untie,
    "two names of one tensor with two values": alias,
    "vocabulary cut by 2 rows": vocabulary(-2),
    "vocabulary grown by 6 rows": vocabulary(6),
    "not a number": one_value,
    "language model rounded to 4 bits": replace("language_model.model.layers", rounded),
    "integers for weights": replace("mlp.up_proj", lambda t: (t * 127).to(torch.int8)),
}


def case(name: str, change: Change) -> Case:
    def make(stock: Stock, folder: Path) -> Made:
        model = stock.model()
        state = state_of(model, "model.")
        change(state, stock)
        return Made(write_run(model, folder, state=state), model)

    return Case(GROUP, name, make, valid=False)


def undescribed(name: str, change: Change) -> Case:
    """The same with nothing that describes it: the weights alone must tell."""

    def make(stock: Stock, folder: Path) -> Made:
        model = stock.model()
        state = state_of(model, "model.")
        change(state, stock)
        bare = {"inside": None, "hyper": None, "beside": None}
        return Made(write_run(model, folder, state=state, **bare), model)

    return Case(GROUP, f"{name}, nothing described", make, valid=False)


BARE = (
    "one tensor missing",
    "a block missing",
    "the first block missing",
    "resampler missing",
    "unknown tensor",
    "another block",
    "projector transposed",
    "projector of another width",
)


def cases() -> Iterator[Case]:
    """Yield missing, unknown, exchanged, foreign and damaged weights."""
    for name, change in CHANGES.items():
        yield case(name, change)
    for name in BARE:
        yield undescribed(name, CHANGES[name])
