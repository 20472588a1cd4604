"""What the names in a torch pickle stand for, without looking any of them up.

Applying one of the few names that torch stores tensors with yields an inert description of the
tensor; applying any other yields a :class:`Foreign` value, whatever its arguments and state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

MAX_NAME = 512
"""Longest name of a class, in characters."""

_STORAGES = {
    "torch.BoolStorage": "bool",
    "torch.ByteStorage": "uint8",
    "torch.CharStorage": "int8",
    "torch.ShortStorage": "int16",
    "torch.IntStorage": "int32",
    "torch.LongStorage": "int64",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.FloatStorage": "float32",
    "torch.DoubleStorage": "float64",
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
    "torch.storage.UntypedStorage": "uint8",
}


class Global(NamedTuple):
    """A module-level name that the pickle mentions; it is never looked up."""

    name: str


class Foreign:
    """What stands for an object of a class that is not read: its class, its items, its state.

    Attributes:
        name: ``module.Class``.
        items: a dict or list of its items if it was filled like one, else None.
        state: what the object would have been given as its state (a dataclass its fields).
    """

    __slots__ = ("items", "name", "state")

    def __init__(self, name: str) -> None:
        self.name = name
        self.items: dict[Any, Any] | list[Any] | None = None
        self.state: Any = None


class Storage(NamedTuple):
    """A block of elements in the archive's record ``data/<key>``."""

    dtype: str
    key: str
    length: int


class StoredTensor(NamedTuple):
    """A view of a storage. The fields are as the file gives them: they are not yet checked."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str


class Refused(Exception):  # noqa: N818
    """Carries the message of a refused pickle to where the file's name is known."""


# What the names do that torch stores tensors with ---------------------------------------------


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    view: Any = None,
    *rest: Any,
    dtype: str = "",
) -> StoredTensor | Foreign:
    """Describe ``_rebuild_tensor_v2``; ``view`` is what conjugation and negation leave to do."""
    if type(storage) is not Storage or rest or (view is not None and view != {}):
        return Foreign("torch.Tensor")
    return StoredTensor(storage, offset, shape, stride, dtype or storage.dtype)


def _tensor_with_dtype(*arguments: Any) -> StoredTensor | Foreign:
    """Describe ``_rebuild_tensor_v3``, whose storage is untyped."""
    *common, dtype = arguments[:7]
    module, _, name = dtype.name.rpartition(".")
    if module != "torch":
        return Foreign("torch.Tensor")
    return _tensor(*common, *arguments[7:], dtype=name)


def _subclass(rebuild: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """Describe ``_rebuild_from_type_v2``: a tensor with attributes, or of a subclass."""
    return apply(rebuild, arguments)


def _empty_dict(factory: Any = None) -> dict[Any, Any]:
    """Describe a new mapping; its items follow as separate instructions."""
    return {}


def _first(value: Any, *rest: Any) -> Any:
    """Describe a wrapper by what it wraps."""
    return value


def _bytes_of_text(*text: Any) -> Foreign:
    """Describe how protocol 2 writes bytes."""
    return Foreign("builtins.bytes")


_APPLY: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _empty_dict,
    "collections.defaultdict": _empty_dict,
    "collections.Counter": _first,
    "builtins.set": _first,
    "builtins.frozenset": _first,
    "_codecs.encode": _bytes_of_text,
    "torch.Size": _first,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_with_dtype,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _subclass,
}


def apply(function: Any, arguments: Any) -> Any:
    """Describe the value that ``function(*arguments)`` would give."""
    if type(arguments) is not tuple:
        raise Refused("it applies a name to something that is no argument list.")
    if type(function) is not Global:
        return Foreign(function.name if type(function) is Foreign else type(function).__name__)
    rule = _APPLY.get(function.name)
    return Foreign(function.name) if rule is None else rule(*arguments)


def describe_storage(reference: Any) -> Storage | Foreign | Global:
    """Describe a persistent id: ``("storage", type, key, device, number of elements)``.

    Before version 1.6 torch added a sixth part, a view into another storage, and kept the source
    of a module's class beside it.
    """
    tag, *rest = reference if type(reference) is tuple and reference else (None,)
    if tag == "module" and len(rest) == 3 and type(rest[0]) is Global:
        return rest[0]
    if tag != "storage":
        raise Refused("it refers to outside data in a way that torch does not.")
    if len(rest) not in (4, 5) or (len(rest) == 5 and rest[4] is not None):
        raise Refused("it describes a storage in a way that is not supported.")
    kind, key, _, length = rest[:4]
    if type(kind) is not Global or type(key) is not str or type(length) is not int:
        raise Refused("it describes a storage in a way that torch does not.")
    dtype = _STORAGES.get(kind.name)
    return Foreign(kind.name) if dtype is None else Storage(dtype, key, length)


def make_name(module: Any, name: Any) -> Global:
    """Make a global of its two names, with the names of Python 2 that protocol 2 writes."""
    if type(module) is not str or type(name) is not str or len(module) + len(name) > MAX_NAME:
        raise Refused("it names a class in a way that is not supported.")
    return Global(f"{'builtins' if module == '__builtin__' else module}.{name}")
