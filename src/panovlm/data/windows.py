"""Bytes in the middle of something larger, as files of their own."""

from __future__ import annotations

import io
from abc import abstractmethod
from pathlib import Path
from typing import BinaryIO


def file_window(file: Path, offset: int, size: int) -> BinaryIO:
    """Open some bytes of a file for reading and seeking.

    Raises:
        OSError: the file is not there.
    """
    return io.BufferedReader(_FileWindow(file, offset, size))


def memory_window(content: memoryview) -> BinaryIO:
    """Open bytes in memory, or in a memory map, for reading and seeking, without a copy."""
    return io.BufferedReader(_MemoryWindow(content))


class _Window(io.RawIOBase):
    """Keeps a position between 0 and a size; beyond the end there is nothing, as in any file."""

    def __init__(self, size: int) -> None:
        self._size, self._at = size, 0

    @abstractmethod
    def _fill(self, target: memoryview, at: int) -> int:
        """Write the bytes from a position on over the target; return how many."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError("there is nothing before the beginning")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        wanted = min(len(buffer), max(self._size - self._at, 0))
        found = self._fill(memoryview(buffer)[:wanted], self._at) if wanted else 0
        self._at += found
        return found


class _FileWindow(_Window):
    def __init__(self, file: Path, offset: int, size: int) -> None:
        super().__init__(size)
        self._file, self._offset = file.open("rb", buffering=0), offset

    def _fill(self, target: memoryview, at: int) -> int:
        self._file.seek(self._offset + at)
        return self._file.readinto(target) or 0

    def close(self) -> None:
        self._file.close()
        super().close()


class _MemoryWindow(_Window):
    def __init__(self, content: memoryview) -> None:
        super().__init__(len(content))
        self._content = content

    def _fill(self, target: memoryview, at: int) -> int:
        target[:] = self._content[at : at + len(target)]
        return len(target)
