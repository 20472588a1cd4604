"""Which parts a stage trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.table import Table
from torch import nn

from panovlm.checkpoint.loading.load import convert
from panovlm.config.schema import StageConfig, Trainable, usually_trainable
from panovlm.errors import ConfigError
from panovlm.models.language.quantized import quantized
from panovlm.models.model import PanoramaVLM


@dataclass(frozen=True)
class ComponentCount:
    """Numbers of parameters of one component."""

    name: str
    total: int
    trainable: int


def trainable_parts(stage: str, settings: StageConfig) -> Trainable:
    """Return what a stage trains."""
    return settings.trainable or usually_trainable(stage)


def freeze(model: PanoramaVLM, parts: Trainable) -> None:
    """Make exactly the chosen parts trainable; adapters always are.

    Raises:
        ConfigError: a chosen part does not exist, or the tower has fewer blocks than chosen.
    """
    model.requires_grad_(False)
    _unfreeze_vision(model, parts.vision_blocks)
    model.resampler_module.requires_grad_(parts.resampler)
    model.projector.requires_grad_(parts.projector)
    if parts.vicreg_projector and model.vicreg_projector is not None:
        model.vicreg_projector.requires_grad_(True)
    if parts.language_model:
        model.language_model.requires_grad_(True)
    for name, parameter in model.language_model.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(True)
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(
            "this stage trains nothing; switch on a part in its `trainable` block "
            "(vision_blocks, resampler, vicreg_projector, projector, language_model)."
        )


def widen(model: nn.Module) -> None:
    """Give components that train in half precision float32 weights.

    A bfloat16 number has eight bits, so that a step smaller than about 1/256 of a weight would be
    lost in rounding. Adapters have float32 weights in any case, and what lies under them stays.
    """
    for component in model.children():
        trained = (p for p in component.parameters() if p.requires_grad)
        if any(p.dtype in (torch.bfloat16, torch.float16) for p in trained):
            convert(component, torch.float32)


def _unfreeze_vision(model: PanoramaVLM, count: int) -> None:
    """Make the last ``count`` blocks of the tower trainable; -1 means all of it."""
    if count == -1:
        model.vision_backbone.requires_grad_(True)
    for block in last_blocks(model, count):
        block.requires_grad_(True)


def last_blocks(model: PanoramaVLM, count: int) -> list[nn.Module]:
    """Return the last ``count`` blocks of the tower; none for -1, which means all of it.

    Raises:
        ConfigError: the tower has fewer.
    """
    if count == -1:
        return []
    blocks = model.vision_backbone.blocks()
    if count > len(blocks):
        raise ConfigError(
            f"trainable.vision_blocks is {count}, but the tower has {len(blocks)} blocks; "
            "-1 trains all of it."
        )
    return list(blocks)[len(blocks) - count :]


def counts(model: PanoramaVLM) -> list[ComponentCount]:
    """Count the parameters of each component, shared ones once, and quantised weights."""
    return [
        ComponentCount(
            name,
            sum(p.numel() for p in module.parameters())
            + sum(layer.in_features * layer.out_features for _, layer in quantized(module)),
            sum(p.numel() for p in module.parameters() if p.requires_grad),
        )
        for name, module in model.named_children()
    ]


def rest_frozen(model: nn.Module) -> None:
    """Put components that are frozen into evaluation mode (no dropout there).

    A component without weights cannot be frozen; it stays as it is.
    """
    for module in model.children():
        weights = list(module.parameters())
        if weights and not any(p.requires_grad for p in weights):
            module.eval()


def table(rows: list[ComponentCount], title: str) -> Table:
    """Draw what trains."""
    drawn = Table(title=title, title_justify="left")
    drawn.add_column("component")
    drawn.add_column("parameters", justify="right")
    drawn.add_column("trained", justify="right")
    for row in rows:
        none = "frozen" if row.total else "no weights"
        state = f"{row.trainable:,}" if row.trainable else none
        drawn.add_row(row.name, f"{row.total:,}", state)
    total = sum(row.total for row in rows)
    trained = sum(row.trainable for row in rows)
    drawn.add_section()
    drawn.add_row("all", f"{total:,}", f"{trained:,}")
    return drawn
