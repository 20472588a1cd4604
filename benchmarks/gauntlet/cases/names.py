"""Names that wrappers leave behind: DDP, torch.compile, DeepSpeed, PEFT, FSDP, and any mixture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.gauntlet.case import Case, Made
from benchmarks.gauntlet.stock import Prefix, Stock, write_run

GROUP = "Wrapped names"
WRAPPED: dict[str, str] = {
    "bare names": "",
    "module. (DDP)": "module.",
    "_orig_mod. (torch.compile)": "_orig_mod.",
    "_forward_module. (Fabric, DeepSpeed)": "_forward_module.",
    "_fsdp_wrapped_module. (FSDP)": "_fsdp_wrapped_module.",
    "base_model.model. (PEFT)": "base_model.model.",
    "model._orig_mod.": "model._orig_mod.",
    "_orig_mod.module. (compiled DDP)": "_orig_mod.module.",
    "module._orig_mod.model.": "module._orig_mod.model.",
    "_forward_module.module.model._fsdp_wrapped_module.": (
        "_forward_module.module.model._fsdp_wrapped_module."
    ),
}
PARTS: dict[str, tuple[str, str]] = {
    "compiled tower": ("vision_backbone.encoder.", "vision_backbone.encoder._orig_mod."),
    "compiled language model": ("language_model.", "language_model._orig_mod."),
    "resampler in DDP": ("resampler_module.", "resampler_module.module."),
    "one Linear in FSDP": ("projector.linear.", "projector.linear._fsdp_wrapped_module."),
    "every block in FSDP": (
        "resampler_module.resampler.blocks.",
        "_fsdp_wrapped_module.resampler_module._fsdp_wrapped_module.resampler.blocks.",
    ),
    "compiled Mamba blocks": (".forward_block.", ".forward_block._orig_mod."),
}


def case(name: str, prefix: Prefix, *, lora: bool = False) -> Case:
    def make(stock: Stock, folder: Path) -> Made:
        model = stock.model(lora={} if lora else None)
        return Made(write_run(model, folder, prefix=prefix), model)

    return Case(GROUP, name, make, valid=True)


def inside(part: str, wrapped: str) -> Prefix:
    return lambda name: "model." + name.replace(part, wrapped, 1)


def adapted(name: str) -> str:
    """Name under which PEFT around the whole model keeps a tensor."""
    return "base_model.model." + name.replace("language_model.base_model.model.", "language_model.")


def cases() -> Iterator[Case]:
    """Yield wrapped models and wrapped parts of models."""
    for name, prefix in WRAPPED.items():
        yield case(name, prefix)
    for name, (part, wrapped) in PARTS.items():
        yield case(name, inside(part, wrapped))
    yield case("PEFT around the whole model", adapted, lora=True)
    yield case(
        "adapters under another name",
        lambda name: "model." + name.replace(".default.", ".mine."),
        lora=True,
    )
