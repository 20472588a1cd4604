"""How the backbones compute their attention: a choice of the run, to the same numbers.

It is no part of the trained model and in no checkpoint.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from panovlm.config.schema import Attention
from panovlm.errors import ConfigError, MissingDependencyError
from panovlm.models.language.pretrained import brief

FLASH = "flash_attention_2"
OPTION = "attn_implementation"
HALF = (torch.float16, torch.bfloat16)


def use_attention(model: nn.Module, chosen: Attention, *, autocast: bool = False) -> None:
    """Choose the attention of the vision tower and the language model.

    Args:
        model: a :class:`~panovlm.models.model.PanoramaVLM`.
        chosen: ``auto`` leaves what transformers took when the backbones were built.
        autocast: whether the model will compute in half precision whatever its weights are.

    Raises:
        MissingDependencyError: flash attention is asked for and not installed.
        ConfigError: a backbone has no such attention.
    """
    if chosen == "auto":
        return
    if chosen == FLASH and find_spec("flash_attn") is None:
        raise MissingDependencyError(
            f"{OPTION} is '{FLASH}', but the package flash-attn is not installed. Install it with: "
            f"pip install flash-attn (it needs a CUDA GPU), or set {OPTION} to sdpa."
        )
    if chosen == FLASH and cast(Any, model).vision_rope is not None:
        raise ConfigError(
            f"{OPTION} is '{FLASH}', which takes the positions of models.vision_rope closed_yaw "
            f"for those of several texts in a row; set {OPTION} to sdpa."
        )
    for backbone in backbones(model):
        name = type(backbone).__name__
        if chosen == FLASH and not autocast and backbone.dtype not in HALF:
            raise ConfigError(
                f"{OPTION} is '{FLASH}', which computes in half precision only, but the weights of "
                f"{name} are {backbone.dtype}; add --dtype bfloat16, or set {OPTION} to sdpa."
            )
        try:
            if not cast(Any, backbone)._can_set_attn_implementation():
                raise ValueError(f"{name} has one way of its own")
            backbone.set_attn_implementation(chosen)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"{OPTION} is '{chosen}', which {name} cannot do: {brief(error)} Set it to auto."
            ) from error


@contextmanager
def exact_attention(model: nn.Module) -> Generator[None]:
    """Compute in sdpa within, where flash attention (half precision only) was chosen."""
    flash = [one for one in backbones(model) if cast(Any, one.config)._attn_implementation == FLASH]
    for backbone in flash:
        backbone.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        for backbone in flash:
            backbone.set_attn_implementation(FLASH)


def backbones(model: nn.Module) -> Iterator[PreTrainedModel]:
    """Yield the vision tower and the language model without the wrapper of its adapters."""
    parts = cast(Any, model)
    yield parts.vision_backbone.encoder
    language = parts.language_model
    yield language.get_base_model() if hasattr(language, "get_base_model") else language
