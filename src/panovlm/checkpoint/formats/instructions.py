"""The instructions of a pickle that describing a tensor does not need.

Each does its work on the machine of :mod:`~panovlm.checkpoint.formats.inert` and returns the
position of the next instruction.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from panovlm.checkpoint.formats.names import MAX_NAME, Foreign, apply, make_name

if TYPE_CHECKING:
    from panovlm.checkpoint.formats.inert import Machine

_u8 = struct.Struct("<Q").unpack_from
_u4 = struct.Struct("<I").unpack_from
_i4 = struct.Struct("<i").unpack_from
_f8 = struct.Struct(">d").unpack_from


def _global(machine: Machine, position: int) -> int:
    middle = machine.data.index(b"\n", position, position + MAX_NAME)
    end = machine.data.index(b"\n", middle + 1, middle + 1 + MAX_NAME)
    module, name = machine.data[position:middle], machine.data[middle + 1 : end]
    machine.stack.append(make_name(module.decode(), name.decode()))
    return end + 1


def _stack_global(machine: Machine, position: int) -> int:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(make_name(module, name))
    return position


def _new_object(machine: Machine, position: int) -> int:
    arguments = machine.stack.pop()
    machine.stack[-1] = apply(machine.stack[-1], arguments)
    return position


def _new_object_with_keywords(machine: Machine, position: int) -> int:
    machine.stack.pop()
    return _new_object(machine, position)


def _build(machine: Machine, position: int) -> int:
    """Keep the state of a foreign object; others have none that matters (``_metadata``)."""
    state = machine.stack.pop()
    target = machine.stack[-1]
    if type(target) is Foreign:
        target.state = state
    return position


def _drop(machine: Machine, position: int) -> int:
    machine.stack.pop()
    return position


def _drop_since_mark(machine: Machine, position: int) -> int:
    machine.since_mark()
    return position


def _put(machine: Machine, position: int) -> int:
    machine.memo[len(machine.memo)] = machine.stack[-1]
    return position


def _get(machine: Machine, position: int) -> int:
    machine.stack.append(machine.memo[_u4(machine.data, position)[0]])
    return position + 4


def _tuple1(machine: Machine, position: int) -> int:
    machine.stack[-1] = (machine.stack[-1],)
    return position


def _tuple3(machine: Machine, position: int) -> int:
    machine.stack[-3:] = [tuple(machine.stack[-3:])]
    return position


def _append(machine: Machine, position: int) -> int:
    value = machine.stack.pop()
    machine.extend([value])
    return position


def _appends(machine: Machine, position: int) -> int:
    machine.extend(machine.since_mark())
    return position


def _frozen_set(machine: Machine, position: int) -> int:
    machine.stack.append(machine.since_mark())
    return position


def _set_item(machine: Machine, position: int) -> int:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.update([key], [value])
    return position


def _set_items(machine: Machine, position: int) -> int:
    flat = machine.since_mark()
    if flat:
        machine.update(flat[::2], flat[1::2])
    return position


def _integer(machine: Machine, position: int) -> int:
    machine.stack.append(_i4(machine.data, position)[0])
    return position + 4


def _long(machine: Machine, position: int) -> int:
    end = position + 1 + machine.data[position]
    digits = machine.data[position + 1 : end]
    machine.stack.append(int.from_bytes(digits, "little", signed=True))
    return end


def _float(machine: Machine, position: int) -> int:
    machine.stack.append(_f8(machine.data, position)[0])
    return position + 8


def _constant(value: bool | None) -> Callable[[Machine, int], int]:
    def instruction(machine: Machine, position: int) -> int:
        machine.stack.append(value)
        return position

    return instruction


def _container(kind: type[Any]) -> Callable[[Machine, int], int]:
    def instruction(machine: Machine, position: int) -> int:
        machine.stack.append(kind())
        return position

    return instruction


def _bytes(width: int, kind: str) -> Callable[[Machine, int], int]:
    def instruction(machine: Machine, position: int) -> int:
        length = int.from_bytes(machine.data[position : position + width], "little")
        machine.stack.append(Foreign(kind))
        return position + width + length

    return instruction


def _skip(width: int) -> Callable[[Machine, int], int]:
    return lambda machine, position: position + width


RARE: dict[int, Callable[[Machine, int], int]] = {
    0x80: _skip(1),  # PROTO
    0x95: _skip(8),  # FRAME
    0x63: _global,  # GLOBAL
    0x93: _stack_global,  # STACK_GLOBAL
    0x81: _new_object,  # NEWOBJ
    0x92: _new_object_with_keywords,  # NEWOBJ_EX
    0x62: _build,  # BUILD
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
"""Instruction by its code."""
