"""Reads the pickle inside a torch file without running it.

A pickle is a program for a small stack machine, and the standard library's machine imports and
calls whatever the program names. This one cannot: it has no instruction that imports or calls.
Applying a name yields a description (see :mod:`~panovlm.checkpoint.formats.names`), and the state
of an object is kept beside it as plain values. So nothing foreign is executed, and a class that is
not installed is no obstacle.

Time and memory are bounded by the length of the pickle (some seconds and 40 bytes per byte at
worst): the memo is sparse, nothing is copied that the pickle does not spell out, and dictionary
keys are restricted to values that hash in constant time (nested tuples can take exponential time,
or overflow the C stack). Supported are the binary instructions of protocols 2 to 5; torch writes
protocol 2.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from panovlm.checkpoint.formats.instructions import RARE
from panovlm.checkpoint.formats.names import (
    Foreign,
    Global,
    Refused,
    Storage,
    apply,
    describe_storage,
)
from panovlm.errors import CheckpointError

MAX_VALUES = 1_000_000
"""Most instructions outside the tensor descriptions, unless the caller allows more."""
_MAX_TUPLE_KEYS = 1000
_LARGEST_INT_KEY = 2**61 - 2  # beyond it, different ints share one hash


class Pickled(NamedTuple):
    """What one pickle describes.

    Attributes:
        value: the object, as inert values.
        end: position after its last byte.
        storages: the storages that its tensors lie in, by key.
    """

    value: Any
    end: int
    storages: Mapping[str, Storage]


def unpickle(data: bytes, origin: str, *, max_values: int = MAX_VALUES) -> Any:
    """Return what the pickle ``data`` describes, as inert values.

    Args:
        data: the pickle.
        origin: file and record, for messages.
        max_values: how many values it may hold beside tensors.

    Returns:
        dict, list, tuple, str, int, float, bool, None, and the classes of
        :mod:`~panovlm.checkpoint.formats.names`. Sets are lists, other mappings of the standard
        library dicts.

    Raises:
        CheckpointError: the pickle is damaged, or uses what no checkpoint needs.
    """
    return unpickle_first(data, 0, origin, max_values=max_values).value


def unpickle_first(
    data: bytes, start: int, origin: str, *, max_values: int = MAX_VALUES
) -> Pickled:
    """Return what the pickle describes that starts at ``start`` and may end before ``data`` does.

    Arguments and errors are those of :func:`unpickle`.
    """
    machine = Machine(data, max_values)
    try:
        return machine.run(start)
    except Refused as refused:
        raise CheckpointError(f"{origin}: {refused}") from refused
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


_u4 = struct.Struct("<I").unpack_from
_u2 = struct.Struct("<H").unpack_from


class Machine:
    """The stack machine: values, marks into them, and the memo of values met before."""

    def __init__(self, data: bytes, max_values: int) -> None:
        self.data = data
        self.max_values = max_values
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.tuple_keys = 0

    def run(self, position: int) -> Pickled:
        """Follow the program to its end and return the value left on the stack."""
        data, stack, marks, memo = self.data, self.stack, self.marks, self.memo
        push, pop = stack.append, stack.pop
        rare, max_values = 0, self.max_values
        while True:
            code = data[position]
            position += 1
            # The instructions that describe a tensor, which are nearly all of a checkpoint, are
            # spelt out here, most frequent first; as functions they take half as long again.
            if code == 0x72:  # LONG_BINPUT
                memo[_u4(data, position)[0]] = stack[-1]
                position += 4
            elif code == 0x68:  # BINGET
                push(memo[data[position]])
                position += 1
            elif code == 0x4B:  # BININT1
                push(data[position])
                position += 1
            elif code == 0x4D:  # BININT2
                push(_u2(data, position)[0])
                position += 2
            elif code == 0x58:  # BINUNICODE
                start = position + 4
                position = start + _u4(data, position)[0]
                push(str(data[start:position], "utf-8", "surrogatepass"))
            elif code == 0x28:  # MARK
                marks.append(len(stack))
            elif code == 0x74:  # TUPLE
                mark = marks.pop()
                stack[mark:] = [tuple(stack[mark:])]
            elif code == 0x52:  # REDUCE
                arguments = pop()
                stack[-1] = apply(stack[-1], arguments)
            elif code == 0x86:  # TUPLE2
                last = pop()
                stack[-1] = (stack[-1], last)
            elif code == 0x51:  # BINPERSID
                stack[-1] = self.storage(stack[-1])
            elif code == 0x89:  # NEWFALSE
                push(False)
            elif code == 0x29:  # EMPTY_TUPLE
                push(())
            elif code == 0x71:  # BINPUT
                memo[data[position]] = stack[-1]
                position += 1
            elif code == 0x2E:  # STOP
                return Pickled(pop(), position, self.storages)
            else:
                instruction = RARE.get(code)
                rare += 1
                if rare > max_values:
                    raise Refused(f"it holds more than {max_values} values beside tensors.")
                if instruction is None:
                    raise Refused(
                        f"its pickle uses instruction 0x{code:02x} at byte {position - 1}, which "
                        "no torch checkpoint contains. It is damaged, or made for another purpose."
                    )
                position = instruction(self, position)

    def storage(self, reference: Any) -> Storage | Foreign | Global:
        """Describe a reference to outside data, and remember the storage that it names."""
        found = describe_storage(reference)
        if type(found) is Storage and self.storages.setdefault(found.key, found) != found:
            raise Refused(f"it describes the storage {found.key!r} in two ways.")
        return found

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
            raise Refused(f"it fills a {type(target).__name__} as if it were a {kind.__name__}.")
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
            raise Refused(
                f"it uses a {kind.__name__} as a dictionary key in a way that is not supported."
            )
