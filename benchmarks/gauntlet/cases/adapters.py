"""Adapters in PEFT's folders, split checkpoints, and backbones that are kept by name."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from benchmarks.gauntlet.backbones import Named, adapted, named
from benchmarks.gauntlet.case import Case, Made
from benchmarks.gauntlet.cases.descriptions import BARE, asked_for
from benchmarks.gauntlet.stock import Stock, state_of, write_run
from safetensors.torch import load_file, save_file
from torch import Tensor

from panovlm.checkpoint.loading.borrow import find_left_out
from panovlm.checkpoint.saving.save import describe_model, with_probe, write_tokenizer
from panovlm.models.model import PanoramaVLM

BESIDE = "Adapters in a folder of their own"
SPLIT = "Split checkpoints and backbones by name"
WEIGHTS = "adapter_model.safetensors"
Change = Callable[[Path], None]


def beside(
    *,
    merged: bool = False,
    lora: Mapping[str, Any] | None = None,
    state: Mapping[str, Any] | None = None,
    change: Change = lambda folder: None,
    answered: bool = True,
    also: Mapping[str, Any] | None = None,
) -> Callable[[Stock, Path], Made]:
    """Write bare weights with ``lora_weights/`` beside them.

    Args:
        merged: whether the weights have the adapters in them already.
        lora: settings of the adapters.
        state: settings of another model whose weights are stored instead.
        change: what is done to the folder of adapters.
        answered: whether the user answers everything that is asked for.
        also: what the user states besides.
    """

    def make(stock: Stock, folder: Path) -> Made:
        base = named(stock)
        model = adapted(base, stock, **(lora or {}))
        stored = stock.model(**state) if state else base.model
        weights = merged_state(model) if merged else state_of(stored, "model.")
        path = write_run(stored, folder, state=weights, **BARE)
        adapters = folder / "lora_weights"
        model.language_model.save_pretrained(adapters)
        change(adapters)
        stated = dict(also or {})
        if answered:
            stated |= asked_for(path, model, stated)
        return Made(path, model, stated, adapters=adapters, base=base.model)

    return make


def merged_state(model: PanoramaVLM) -> dict[str, Tensor]:
    whole = copy.deepcopy(model)
    whole.merge_adapters()
    return state_of(whole, "model.")


def rename(wrong: Callable[[str], str]) -> Change:
    def change(folder: Path) -> None:
        tensors = {wrong(n): t.clone() for n, t in load_file(folder / WEIGHTS).items()}
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    return change


def keep(wanted: Callable[[str], bool]) -> Change:
    def change(folder: Path) -> None:
        tensors = {n: t.clone() for n, t in load_file(folder / WEIGHTS).items() if wanted(n)}
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    return change


def reconfigure(**values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def dead(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({n: t.zero_() if "lora_A" in n else t for n, t in tensors.items()}, folder / WEIGHTS)


def split(
    *,
    tower: bool = True,
    base: bool = True,
    file: str = "non_lora_trainables.bin",
    change: Change = lambda folder: None,
) -> Callable[[Stock, Path], Made]:
    """Write a checkpoint as LLaVA's trainers do: adapters, and what else was trained.

    Args:
        tower: whether the user names the tower.
        base: whether the language model that the adapters name is there.
        file: name of what else was trained.
        change: what is done to the folder.
    """

    def make(stock: Stock, folder: Path) -> Made:
        known = named(stock)
        model = adapted(known, stock)
        frozen = ("vision_backbone.encoder.", "language_model.")
        state = {n: t for n, t in state_of(model).items() if not n.startswith(frozen)}
        model.language_model.save_pretrained(folder)
        torch.save({f"base_model.model.{n}": t for n, t in state.items()}, folder / file)
        write_tokenizer(folder, model)
        change(folder)
        if not base:
            reconfigure(base_model_name_or_path="someone/elses-model")(folder)
        stated = {"models.vision_name": known.tower} if tower else {}
        if tower and base:
            stated |= asked_for(folder, model, stated)
        return Made(folder, model, stated, adapters=folder, base=known.model)

    return make


def by_name(change: Callable[[Named, Path], None]) -> Callable[[Stock, Path], Made]:
    """Leave the frozen backbones to their folders, and then do something to these."""

    def make(stock: Stock, folder: Path) -> Made:
        label = f"trained-on-{folder.parent.name}-{folder.name}"
        known = named(stock, label)
        left_out = find_left_out(known.model)
        document = json.loads(
            with_probe(known.model, describe_model(known.model, left_out=left_out)).to_json()
        )
        state = {
            f"model.{n}": t for n, t in state_of(known.model).items() if n not in left_out.names
        }
        options = {"state": state, "inside": document, "beside": document}
        path = write_run(known.model, folder, **options)
        change(known, folder)
        return Made(path, known.model)

    return make


def other_weights(known: Named, folder: Path) -> None:
    """Somebody saved another model under the name."""
    path = Path(known.language) / "model.safetensors"
    tensors = load_file(path)
    save_file({n: t + 0.01 for n, t in tensors.items()}, path, {"format": "pt"})


def gone(known: Named, folder: Path) -> None:
    shutil.rmtree(known.language)


OTHER = {"seed": 9}
WIDER = {"seed": 9, "language": "llama"}
CASES: dict[str, tuple[Callable[[Stock, Path], Made], bool]] = {
    "put onto the weights that they were trained on": (beside(), True),
    "merged into the weights already": (beside(merged=True), True),
    "base not known, nothing said": (
        beside(change=reconfigure(base_model_name_or_path="gone/away"), answered=False),
        False,
    ),
    "base not known, user says that they belong": (
        beside(
            change=reconfigure(base_model_name_or_path="gone/away"), also={"lora.use_lora": True}
        ),
        True,
    ),
    "that match nothing": (beside(change=rename(lambda n: f"other.{n}"), answered=False), False),
    "with names of another model": (
        beside(change=rename(lambda n: n.replace("self_attn", "attention")), answered=False),
        False,
    ),
    "for other weights of the same sizes": (beside(state=OTHER, answered=False), False),
    "for a language model of another family": (beside(state=WIDER, answered=False), False),
    "half of them": (beside(change=keep(lambda n: "layers.1" not in n), answered=False), False),
    "only one of each pair": (beside(change=keep(lambda n: "lora_B" in n), answered=False), False),
    "without effect (A is zero)": (beside(change=dead, answered=False), False),
    "DoRA": (beside(lora={"use_dora": True}), True),
    "DoRA, merged into the weights already": (beside(lora={"use_dora": True}, merged=True), True),
    "DoRA without its lengths": (
        beside(
            lora={"use_dora": True}, change=keep(lambda n: "magnitude" not in n), answered=False
        ),
        False,
    ),
    "LoRA that says it were DoRA": (
        beside(change=reconfigure(use_dora=True), answered=False),
        False,
    ),
    "of another kind (a bias of its own)": (
        beside(change=reconfigure(lora_bias=True), answered=False),
        False,
    ),
    "a folder without their weights": (
        beside(change=lambda folder: (folder / WEIGHTS).unlink(), answered=False),
        False,
    ),
}
SPLITS: dict[str, tuple[Callable[[Stock, Path], Made], bool]] = {
    "adapters and non_lora_trainables.bin": (split(), True),
    "adapters and mm_projector.bin": (split(file="mm_projector.bin"), True),
    "tower not named": (split(tower=False), False),
    "language model not there": (split(base=False), False),
    "without what else was trained": (
        split(change=lambda folder: (folder / "non_lora_trainables.bin").unlink(), tower=False),
        False,
    ),
    "frozen backbones by name and digest": (by_name(lambda known, folder: None), True),
    "named model has other weights now": (by_name(other_weights), False),
    "named model is gone": (by_name(gone), False),
}


def cases() -> Iterator[Case]:
    """Yield adapters beside checkpoints, split checkpoints and references."""
    for group, made in ((BESIDE, CASES), (SPLIT, SPLITS)):
        for name, (make, valid) in made.items():
            yield Case(group, name, make, valid=valid)
