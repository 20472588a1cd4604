"""Building modules whose parameters have names and shapes, and take no memory."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers.initialization import guard_torch_init_functions


@contextmanager
def without_weights() -> Generator[None]:
    """Put every parameter of the modules that are built inside on the meta device.

    Initialisers draw and compute nothing for a parameter. Buffers are real and get all the values
    that construction and initialisation give them, since no checkpoint holds those that are
    computed (the frequencies of rotary positions). ``torch.device("meta")`` would take these too.
    """
    modules = cast(Any, nn.Module)
    register = modules.register_parameter

    def register_empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None:
            empty = nn.Parameter(
                torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
            )
            # By this, transformers' initialisers know what has got its value already.
            cast(Any, empty)._is_hf_initialized = True
            cast(Any, module)._parameters[name] = empty

    modules.register_parameter = register_empty
    try:
        with guard_torch_init_functions():  # so that torch's initialisers heed it too
            yield
    finally:
        modules.register_parameter = register
