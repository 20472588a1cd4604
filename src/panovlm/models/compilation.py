"""Compiling the layers of the backbones: a choice of the run, to the same numbers but for rounding.

It is no part of the trained model: no name in its state dict changes, and no checkpoint records it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from panovlm.errors import ConfigError
from panovlm.models.attention import backbones
from panovlm.models.language.pretrained import brief

OPTION = "environment.compile"
VARIANTS = 64
"""How often layers may be compiled anew: to train and to validate, frozen or not, with a mask or
without, for one size and for all, in every stage. transformers calls all kinds of layers through
one function, which torch counts as one; beyond its own limit of 8 it would compute uncompiled."""


def compile_layers(model: nn.Module) -> dict[str, int]:
    """Have torch compile the repeated layers of the vision tower and the language model.

    Layers of one kind share what is compiled, which takes a fraction of the time that whole models
    take ("regional compilation" in torch's tutorials). It happens when a layer is first called. The
    resampler is left out: its scans bring kernels of their own.

    Args:
        model: a :class:`~panovlm.models.model.PanoramaVLM`, its adapters in place.

    Returns:
        How many layers there are of each class.

    Raises:
        ConfigError: neither backbone has repeated layers.
    """
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, VARIANTS)
    found: dict[str, int] = {}
    for backbone in backbones(model):
        for layer in _layers(backbone):
            layer.compile()
            name = type(layer).__name__
            found[name] = found.get(name, 0) + 1
    if not found:
        raise ConfigError(
            f"{OPTION} is true, but no backbone has layers to compile; set it to false."
        )
    return found


def check_compiler(device: torch.device) -> None:
    """Compile the smallest program.

    Raises:
        ConfigError: torch finds no compiler for the device, or it does not work, or what it
            compiles cannot be written.
    """
    from torch._dynamo.exc import TorchDynamoException

    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except (OSError, TorchDynamoException) as error:
        raise refusal(error) from error


def is_failure(error: BaseException) -> bool:
    """Tell whether torch failed to compile, with anything that it says so with."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)


def refusal(error: BaseException) -> ConfigError:
    """Return what a user is told about a failure to compile."""
    said = _said(getattr(error, "inner_exception", error))
    return ConfigError(
        f"{OPTION} is true, but torch cannot compile here: {said}. It needs a C++ compiler (g++ or "
        "clang++), on a GPU Triton as well, and a folder that it can write to (the environment "
        f"variable TORCHINDUCTOR_CACHE_DIR names another). Mend that, or set {OPTION} to false."
    )


def _said(cause: BaseException) -> str:
    """Return what a compiler said, without its long command line."""
    output = getattr(cause, "output", None)
    if not isinstance(output, str) or not output.strip():
        return f"{type(cause).__name__}: {brief(cause)}".removesuffix(".")
    lines = output.strip().splitlines()
    return next((line for line in lines if "error" in line.lower()), lines[0]).strip()[:300]


@contextmanager
def uncompiled(model: nn.Module) -> Generator[None]:
    """Compute with the layers as they are written within."""
    if not any(cast(Any, module)._compiled_call_impl for module in model.modules()):
        yield  # without torch's compiler, whose import takes a second
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _layers(backbone: nn.Module) -> Iterator[nn.Module]:
    """Yield the entries of a backbone's outermost lists."""
    for child in backbone.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)
