"""Reads the pickle inside a torch file without running it.

A pickle is a program for a small stack machine, and the standard library's machine imports and
calls whatever the program names. This one cannot: it has no instruction that imports or calls.
A name becomes a :class:`Global`; applying one that torch uses to store tensors yields an inert
description (:class:`StoredTensor`), and applying any other yields a :class:`Foreign` value,
whatever its arguments and state. So nothing foreign is executed, and a class that is not
installed is no obstacle.

Time and memory are bounded by the length of the pickle (some seconds and 40 bytes per byte at
worst): the memo is sparse, nothing is copied that the pickle does not spell out, and dictionary
keys are restricted to values that hash in constant time (nested tuples can take exponential time,
or overflow the C stack). Supported are the binary instructions of protocols 2 to 5; torch writes
protocol 2.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from panovlm.errors import CheckpointError

_MAX_RARE = 1_000_000  # instructions outside the tensor descriptions
_MAX_NAME = 512
_MAX_TUPLE_KEYS = 1000
_LARGEST_INT_KEY = 2**61 - 2  # beyond it, different ints share one hash

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
    """What stands for an object of a class that is not read: its class, and its items.

    Attributes:
        name: ``module.Class``.
        items: a dict or list of its items if it was filled like one, else None.
    """

    __slots__ = ("items", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.items: dict[Any, Any] | list[Any] | None = None


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


class _Stop(Exception):  # noqa: N818
    """Carries the message of a refused pickle to where the file's name is known."""


def unpickle(data: bytes, origin: str) -> Any:
    """Return what the pickle ``data`` describes, as inert values.

    Args:
        data: the pickle.
        origin: file and record, for messages.

    Returns:
        dict, list, tuple, str, int, float, bool, None, and the classes of this module. Sets are
        lists, other mappings of the standard library dicts.

    Raises:
        CheckpointError: the pickle is damaged, or uses what no checkpoint needs.
    """
    machine = _Machine(data)
    try:
        return machine.run()
    except _Stop as stop:
        raise CheckpointError(f"{origin}: {stop}") from stop
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        raise CheckpointError(
            f"{origin} is damaged: its pickle cannot be followed "
            f"({type(error).__name__}: {error}). Copy it again or take the checkpoint before it."
        ) from error


_u8 = struct.Struct("<Q").unpack_from
_u4 = struct.Struct("<I").unpack_from
_i4 = struct.Struct("<i").unpack_from
_u2 = struct.Struct("<H").unpack_from
_f8 = struct.Struct(">d").unpack_from


class _Machine:
    """The stack machine: values, marks into them, and the memo of values met before."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.tuple_keys = 0

    def run(self) -> Any:
        """Follow the program to its end and return the value left on the stack."""
        data, stack, marks, memo = self.data, self.stack, self.marks, self.memo
        push, pop = stack.append, stack.pop
        position = rare = 0
        while True:
            code = data[position]
            position += 1
            # The instructions that describe a tensor, which are nearly all of a checkpoint, are
            # spelt out here, most frequent first; as functions they take half as long again.
            if code == 0x72:  # LONG_BINPUT
                memo[_u4(data, position)[0]] = stack[-1]
                position += 4
            elif code == 0x4B:  # BININT1
                push(data[position])
                position += 1
            elif code == 0x68:  # BINGET
                push(memo[data[position]])
                position += 1
            elif code == 0x28:  # MARK
                marks.append(len(stack))
            elif code == 0x74:  # TUPLE
                push(tuple(self.since_mark()))
            elif code == 0x86:  # TUPLE2
                last = pop()
                stack[-1] = (stack[-1], last)
            elif code == 0x58:  # BINUNICODE
                start = position + 4
                position = start + _u4(data, position)[0]
                push(str(data[start:position], "utf-8", "surrogatepass"))
            elif code == 0x52:  # REDUCE
                arguments = pop()
                stack[-1] = _apply(stack[-1], arguments)
            elif code == 0x29:  # EMPTY_TUPLE
                push(())
            elif code == 0x89:  # NEWFALSE
                push(False)
            elif code == 0x51:  # BINPERSID
                stack[-1] = _storage(stack[-1])
            elif code == 0x71:  # BINPUT
                memo[data[position]] = stack[-1]
                position += 1
            elif code == 0x4D:  # BININT2
                push(_u2(data, position)[0])
                position += 2
            elif code == 0x2E:  # STOP
                return pop()
            else:
                instruction = _RARE.get(code)
                rare += 1
                if rare > _MAX_RARE:
                    raise _Stop(f"it holds more than {_MAX_RARE} values beside tensors.")
                if instruction is None:
                    raise _Stop(
                        f"its pickle uses instruction 0x{code:02x} at byte {position - 1}, which "
                        "no torch checkpoint contains. It is damaged, or made for another purpose."
                    )
                position = instruction(self, position)

    def since_mark(self) -> list[Any]:
        """Take the values above the last mark off the stack."""
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def text(self, start: int, length: int) -> int:
        """Push the text of ``length`` bytes at ``start``; return where it ends."""
        self.stack.append(str(self.data[start : start + length], "utf-8", "surrogatepass"))
        return start + length

    def container(self, kind: type[Any]) -> Any:
        """Return the list or dict on top of the stack, or that of the foreign object there."""
        target = self.stack[-1]
        if type(target) is Foreign:
            if target.items is None:
                target.items = kind()
            # An object that is both is shown by what came first.
            target = target.items if type(target.items) is kind else kind()
        if type(target) is not kind:
            raise _Stop(f"it fills a {type(target).__name__} as if it were a {kind.__name__}.")
        return target

    def extend(self, values: list[Any]) -> None:
        """Append to the list on top of the stack."""
        self.container(list).extend(values)

    def update(self, keys: list[Any], values: list[Any]) -> None:
        """Set items of the dict on top of the stack."""
        if set(map(type, keys)) != {str}:
            for key in keys:
                self.check_key(key)
        self.container(dict).update(zip(keys, values, strict=True))

    def check_key(self, key: Any) -> None:
        """Refuse a dictionary key that might be slow to hash, or made to collide."""
        kind = type(key)
        if kind is tuple and len(key) <= 16 and self.tuple_keys < _MAX_TUPLE_KEYS:
            self.tuple_keys += 1
            simple = all(type(part) in (str, int, float, bool, type(None)) for part in key)
        elif kind is int:
            simple = -_LARGEST_INT_KEY <= key <= _LARGEST_INT_KEY
        else:
            simple = kind in (str, float, bool, type(None), Global, Foreign)
        if not simple:
            raise _Stop(
                f"it uses a {kind.__name__} as a dictionary key in a way that is not supported."
            )


# What the names do that torch stores tensors with ---------------------------------------------


def _tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any, dtype: str = ""
) -> StoredTensor | Foreign:
    """Describe ``_rebuild_tensor_v2``; ``rest`` is requires_grad, hooks and view metadata."""
    if type(storage) is not Storage or rest[2:] not in ((), (None,), ({},)):
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
    return _apply(rebuild, arguments)


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


def _apply(function: Any, arguments: Any) -> Any:
    """Describe the value that ``function(*arguments)`` would give."""
    if type(arguments) is not tuple:
        raise _Stop("it applies a name to something that is no argument list.")
    if type(function) is not Global:
        return Foreign(function.name if type(function) is Foreign else type(function).__name__)
    rule = _APPLY.get(function.name)
    return Foreign(function.name) if rule is None else rule(*arguments)


def _storage(reference: Any) -> Storage | Foreign:
    """Describe a persistent id: ``("storage", type, key, device, number of elements)``."""
    if type(reference) is not tuple or len(reference) != 5 or reference[0] != "storage":
        raise _Stop("it refers to outside data in a way that torch does not.")
    _, kind, key, _, length = reference
    if type(kind) is not Global or type(key) is not str or type(length) is not int:
        raise _Stop("it describes a storage in a way that torch does not.")
    dtype = _STORAGES.get(kind.name)
    return Foreign(kind.name) if dtype is None else Storage(dtype, key, length)


def _name(module: Any, name: Any) -> Global:
    """Make a global of its two names, with the names of Python 2 that protocol 2 writes."""
    if type(module) is not str or type(name) is not str or len(module) + len(name) > _MAX_NAME:
        raise _Stop("it names a class in a way that is not supported.")
    return Global(f"{'builtins' if module == '__builtin__' else module}.{name}")


# The other instructions: each does its work and returns the position of the next ---------------


def _global(machine: _Machine, position: int) -> int:
    middle = machine.data.index(b"\n", position, position + _MAX_NAME)
    end = machine.data.index(b"\n", middle + 1, middle + 1 + _MAX_NAME)
    module, name = machine.data[position:middle], machine.data[middle + 1 : end]
    machine.stack.append(_name(module.decode(), name.decode()))
    return end + 1


def _stack_global(machine: _Machine, position: int) -> int:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(_name(module, name))
    return position


def _new_object(machine: _Machine, position: int) -> int:
    arguments = machine.stack.pop()
    machine.stack[-1] = _apply(machine.stack[-1], arguments)
    return position


def _new_object_with_keywords(machine: _Machine, position: int) -> int:
    machine.stack.pop()
    return _new_object(machine, position)


def _drop(machine: _Machine, position: int) -> int:
    machine.stack.pop()
    return position


def _drop_since_mark(machine: _Machine, position: int) -> int:
    machine.since_mark()
    return position


def _put(machine: _Machine, position: int) -> int:
    machine.memo[len(machine.memo)] = machine.stack[-1]
    return position


def _get(machine: _Machine, position: int) -> int:
    machine.stack.append(machine.memo[_u4(machine.data, position)[0]])
    return position + 4


def _tuple1(machine: _Machine, position: int) -> int:
    machine.stack[-1] = (machine.stack[-1],)
    return position


def _tuple3(machine: _Machine, position: int) -> int:
    machine.stack[-3:] = [tuple(machine.stack[-3:])]
    return position


def _append(machine: _Machine, position: int) -> int:
    value = machine.stack.pop()
    machine.extend([value])
    return position


def _appends(machine: _Machine, position: int) -> int:
    machine.extend(machine.since_mark())
    return position


def _frozen_set(machine: _Machine, position: int) -> int:
    machine.stack.append(machine.since_mark())
    return position


def _set_item(machine: _Machine, position: int) -> int:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.update([key], [value])
    return position


def _set_items(machine: _Machine, position: int) -> int:
    flat = machine.since_mark()
    if flat:
        machine.update(flat[::2], flat[1::2])
    return position


def _integer(machine: _Machine, position: int) -> int:
    machine.stack.append(_i4(machine.data, position)[0])
    return position + 4


def _long(machine: _Machine, position: int) -> int:
    end = position + 1 + machine.data[position]
    digits = machine.data[position + 1 : end]
    machine.stack.append(int.from_bytes(digits, "little", signed=True))
    return end


def _float(machine: _Machine, position: int) -> int:
    machine.stack.append(_f8(machine.data, position)[0])
    return position + 8


def _constant(value: bool | None) -> Callable[[_Machine, int], int]:
    def instruction(machine: _Machine, position: int) -> int:
        machine.stack.append(value)
        return position

    return instruction


def _container(kind: type[Any]) -> Callable[[_Machine, int], int]:
    def instruction(machine: _Machine, position: int) -> int:
        machine.stack.append(kind())
        return position

    return instruction


def _bytes(width: int, kind: str) -> Callable[[_Machine, int], int]:
    def instruction(machine: _Machine, position: int) -> int:
        length = int.from_bytes(machine.data[position : position + width], "little")
        machine.stack.append(Foreign(kind))
        return position + width + length

    return instruction


def _skip(width: int) -> Callable[[_Machine, int], int]:
    return lambda machine, position: position + width


_RARE: dict[int, Callable[[_Machine, int], int]] = {
    0x80: _skip(1),  # PROTO
    0x95: _skip(8),  # FRAME
    0x63: _global,  # GLOBAL
    0x93: _stack_global,  # STACK_GLOBAL
    0x81: _new_object,  # NEWOBJ
    0x92: _new_object_with_keywords,  # NEWOBJ_EX
    0x62: _drop,  # BUILD: the state of an object, or the _metadata of a state dict
    0x30: _drop,  # POP
    0x31: _drop_since_mark,  # POP_MARK
    0x94: _put,  # MEMOIZE
    0x6A: _get,  # LONG_BINGET
    0x85: _tuple1,  # TUPLE1
    0x87: _tuple3,  # TUPLE3
    0x5D: _container(list),  # EMPTY_LIST
    0x7D: _container(dict),  # EMPTY_DICT
    0x8F: _container(list),  # EMPTY_SET
    0x91: _frozen_set,  # FROZENSET
    0x61: _append,  # APPEND
    0x65: _appends,  # APPENDS
    0x90: _appends,  # ADDITEMS
    0x73: _set_item,  # SETITEM
    0x75: _set_items,  # SETITEMS
    0x4E: _constant(None),  # NONE
    0x88: _constant(True),  # NEWTRUE
    0x4A: _integer,  # BININT
    0x8A: _long,  # LONG1
    0x47: _float,  # BINFLOAT
    0x8C: lambda m, at: m.text(at + 1, m.data[at]),  # SHORT_BINUNICODE
    0x8D: lambda m, at: m.text(at + 8, _u8(m.data, at)[0]),  # BINUNICODE8
    0x43: _bytes(1, "builtins.bytes"),  # SHORT_BINBYTES
    0x42: _bytes(4, "builtins.bytes"),  # BINBYTES
    0x8E: _bytes(8, "builtins.bytes"),  # BINBYTES8
    0x96: _bytes(8, "builtins.bytearray"),  # BYTEARRAY8
}
