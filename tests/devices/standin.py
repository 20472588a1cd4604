"""A device that stands in for a GPU where there is none: it computes on the CPU, and is strict.

As on a GPU, an operation refuses tensors of two devices, numbers come to Python by ``item`` and
``cpu`` only, and what is made without naming a device is on the CPU. So it finds every tensor that
is made in the wrong place, with real values and gradients; it tells nothing about kernels, their
rounding or their speed.

Importing this makes it known to torch as a backend of the whole process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)


class _Module(_DummyBackendModule):
    """What torch wants to know of a backend."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


NAME = "standin"
_setup_privateuseone_for_python_backend(NAME, _Module())
DEVICE, CPU = torch.device(NAME, 0), torch.device("cpu")
aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default)
"""What may be given tensors of two devices."""
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
"""What may be given indices on the CPU, the second argument."""


class OnStandIn(torch.Tensor):
    """A tensor of the device; ``held`` has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnStandIn:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})

    def tolist(self) -> Any:
        """Fetch the values, as of any tensor."""
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> NoReturn:
        """Refuse what a GPU's tensors refuse."""
        raise TypeError(f"can't convert a tensor on {DEVICE} to numpy")

    def __repr__(self) -> str:
        return f"OnStandIn({self.held!r})"


class _Known(TorchDispatchMode):
    """Brings tensors that are made by the name of the device, or sent there, to it."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})


@contextmanager
def stand_in() -> Iterator[torch.device]:
    """Have the device within."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor goes by way of operations
    try:
        with _Known():
            yield DEVICE
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def _run(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute one operation on the values, if a GPU would."""
    there = [t for t in tree_leaves((args, kwargs)) if isinstance(t, OnStandIn)]
    asked = kwargs.get("device")
    if asked is not None:
        on_device = torch.device(asked).type == NAME
        kwargs = {**kwargs, "device": CPU}
    else:
        on_device = isinstance(args[0], OnStandIn) if op in COPIES else bool(there)
    if there and op not in COPIES:
        _refuse_mixed(op, [args[0], *args[2:]] if op in INDEXED else [args, kwargs])
    plain_args, plain_kwargs = tree_map(_held, (args, kwargs))
    found = op(*plain_args, **plain_kwargs)
    if not on_device:
        return found
    themselves = {id(t.held): t for t in there}  # what is changed in place
    return tree_map(lambda t: themselves[id(t)] if id(t) in themselves else _wrapped(t), found)


def _refuse_mixed(op: Any, given: Any) -> None:
    """Refuse tensors of the CPU but for single numbers."""
    for t in tree_leaves(given):
        if isinstance(t, torch.Tensor) and not isinstance(t, OnStandIn) and t.ndim:
            raise RuntimeError(f"{op}: a tensor of shape {list(t.shape)} is on the CPU, not there")


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnStandIn) else value


def _wrapped(value: Any) -> Any:
    return OnStandIn(value) if isinstance(value, torch.Tensor) else value
