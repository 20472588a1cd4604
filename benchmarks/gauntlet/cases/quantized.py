"""Models whose language model is kept in four or eight bits, well described or not."""

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
from benchmarks.gauntlet.stock import Stock
from safetensors.torch import load_file, save_file

from panovlm.checkpoint.documents.metadata import EMBEDDED
from panovlm.checkpoint.find.locate import SIDECAR
from panovlm.checkpoint.probe.record import ENTRY as PROBE
from panovlm.checkpoint.saving.convert import convert
from panovlm.checkpoint.saving.save import save_checkpoint, without_record
from panovlm.config.schema import LoRASettings
from panovlm.models.model import PanoramaVLM

GROUP = "A language model in four or eight bits"
FIELD = "language_quantization"
NAME = "models.language_model_name"
Change = Callable[[Path, Named], Mapping[str, Any]]
"""What is done to a run folder; returns what its user states."""


def nothing(folder: Path, base: Named) -> Mapping[str, Any]:
    return {}


def rounded(stock: Stock, kind: str, lora: Mapping[str, Any]) -> tuple[Named, PanoramaVLM]:
    """Return a model after adapters were trained upon its quantised language model."""
    base = named(stock)
    # As training does it: the adapters come to the quantised model.
    trained = adapted(base, stock, **lora)

    def make() -> PanoramaVLM:
        model = copy.deepcopy(base.model)
        models = model.recipe.models.model_copy(update={FIELD: kind})
        model.set_recipe(model.recipe.model_copy(update={"models": models.model_dump()}))
        model.quantize()
        model.add_adapters(LoRASettings.model_validate(trained.recipe.lora.model_dump()))
        own = {n: t for n, t in trained.state_dict().items() if ".lora_" in n}
        model.load_state_dict(own, strict=False)
        return model.eval()

    return base, stock.kept(f"quantised {kind} {sorted(lora.items())}", make)


def saved(
    kind: str = "nf4", *, change: Change = nothing, full: bool = False, **lora: Any
) -> Callable[[Stock, Path], Made]:
    """Write a run folder as it is saved outside training.

    Args:
        kind: how the language model is quantised.
        change: what happens to the folder.
        full: whether the weights in full precision are inside, instead of a name.
        lora: settings of the adapters.
    """

    def make(stock: Stock, folder: Path) -> Made:
        base, model = rounded(stock, kind, lora)
        run = folder / "run"
        run.mkdir()
        save_checkpoint(copy.deepcopy(model), run / "best.ckpt", stage="finetune")
        if full:
            convert(run / "best.ckpt", folder / "full.ckpt", to="lightning")
            shutil.rmtree(run)
            run.mkdir()
            (folder / "full.ckpt").rename(run / "best.ckpt")
        return Made(run / "best.ckpt", model, change(run, base))

    return make


def state_dict(change: Change = nothing) -> Callable[[Stock, Path], Made]:
    """Write nothing but the state dict of such a model, and its tokenizer."""

    def make(stock: Stock, folder: Path) -> Made:
        base, model = rounded(stock, "nf4", {})
        torch.save(model.state_dict(), folder / "bare.pt")
        assert model.tokenizer is not None
        model.tokenizer.save_pretrained(folder / "tokenizer")
        return Made(folder / "bare.pt", model, change(folder, base))

    return make


def retold(value: str, *, everywhere: bool = False) -> Change:
    """Let documents say something else; ``everywhere``: those inside and the weights as well."""

    def edited(text: str) -> str:
        document = json.loads(text)
        document["recipe"]["models"][FIELD] = value
        return json.dumps(document)

    def change(folder: Path, base: Named) -> Mapping[str, Any]:
        beside = folder / SIDECAR
        beside.write_text(edited(beside.read_text()))
        if everywhere:
            contents = torch.load(folder / "best.ckpt", weights_only=True)
            contents[EMBEDDED] = edited(contents[EMBEDDED])
            contents["state_dict"] = without_record(contents["state_dict"])
            torch.save(contents, folder / "best.ckpt")
        return {}

    return change


def undescribed(*, probe: bool) -> Change:
    """Remove every description, but perhaps the probe."""

    def change(folder: Path, base: Named) -> Mapping[str, Any]:
        contents = torch.load(folder / "best.ckpt", weights_only=True)
        kept = {name: value for name, value in contents.items() if name != EMBEDDED}
        if not probe:
            kept.pop(PROBE)
        kept["state_dict"] = without_record(kept["state_dict"])
        torch.save(kept, folder / "best.ckpt")
        return {}

    return change


def with_base(edit: Callable[[Path], None]) -> Change:
    """Let the user name another language model than the one that was quantised."""

    def change(folder: Path, base: Named) -> Mapping[str, Any]:
        other = folder.parent / f"{folder.name}-base"
        shutil.copytree(base.language, other)
        edit(other)
        return {NAME: str(other)}

    return change


def nudged(part: str) -> Callable[[Path], None]:
    """Change a weight so little that it is rounded to the same bits."""

    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        name = next(name for name in sorted(tensors) if part in name)
        tensors[name].view(-1)[1] *= 1 + 1e-5
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return edit


def packed(folder: Path) -> None:
    """Say that the weights of a folder are bitsandbytes' own."""
    config = json.loads((folder / "config.json").read_text())
    told = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": told}))


def cases() -> Iterator[Case]:
    """Yield the cases of this group."""
    rows: list[tuple[str, Callable[[Stock, Path], Made], bool]] = [
        ("nf4, base by name and digest", saved("nf4"), True),
        ("fp4, base by name and digest", saved("fp4"), True),
        ("int8, base by name and digest", saved("int8"), True),
        ("nf4 under DoRA", saved("nf4", use_dora=True), True),
        ("nf4, full weights inside", saved("nf4", full=True), True),
        ("int8, full weights inside", saved("int8", full=True), True),
        ("nf4, state dict alone", state_dict(), True),
        ("document beside says none", saved(change=retold("none")), False),
        ("every document says none", saved(change=retold("none", everywhere=True)), False),
        ("every document says int8", saved(change=retold("int8", everywhere=True)), False),
        (
            "undescribed, full weights and probe",
            saved(full=True, change=undescribed(probe=True)),
            False,
        ),
        ("undescribed, full weights", saved(full=True, change=undescribed(probe=False)), False),
        ("document beside alone, base by name", saved(change=undescribed(probe=False)), True),
        ("base with another rounded weight", saved(change=with_base(nudged("up_proj"))), False),
        ("state dict, base with another norm", state_dict(with_base(nudged("norm.weight"))), False),
        ("base that is stored quantised", saved(change=with_base(packed)), False),
    ]
    for name, make, valid in rows:
        yield Case(GROUP, name, make, valid)
