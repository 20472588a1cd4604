"""Read-only access to the bytes of one regular file, at any position."""

from __future__ import annotations

import copy
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from panovlm.checkpoint.formats.lookalike import describe_folder
from panovlm.errors import CheckpointError

_MAX_NAME = 255  # bytes, on every common file system
_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".index.json")


class FileState(NamedTuple):
    """What tells one file from another, and from itself before or after it was written to."""

    device: int
    number: int
    size: int
    written: int
    changed: int


class Source:
    """An open checkpoint file; use it in a ``with`` statement.

    Args:
        path: the file.

    Attributes:
        path: the file.
        start: position of its first byte; not 0 in a part of a file.
        size: its length in bytes.

    Raises:
        CheckpointError: the file does not exist, is no regular file, is empty or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                raise CheckpointError(describe_folder(path))
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path} is no regular file; a checkpoint file was expected.")
            self._file = path.open("rb", buffering=0)
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} does not exist.{_neighbours(path)}") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be opened: {error}") from error
        self.start = 0
        self.size = self._file.seek(0, 2)
        if self.size == 0:
            self._file.close()
            raise CheckpointError(
                f"{path} is empty (0 bytes): the save or the download did not finish. "
                "Copy or download it again."
            )

    def read(self, position: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``position`` on.

        Raises:
            CheckpointError: the file ends before, or the disk fails.
        """
        if position < 0 or length < 0 or position + length > self.size:
            raise CheckpointError(
                f"{self.path} is truncated or damaged: bytes {position} to {position + length} "
                f"were expected, but the file has {self.size}. Copy or download it again."
            )
        try:
            self._file.seek(self.start + position)
            parts = [self._file.read(length)]
            while sum(map(len, parts)) < length and parts[-1]:
                parts.append(self._file.read(length - sum(map(len, parts))))
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error}") from error
        data = b"".join(parts)
        if len(data) < length:
            raise CheckpointError(f"{self.path} became shorter while it was read.")
        return data

    def part(self, start: int, length: int) -> Source:
        """Return the bytes from ``start`` on as a source of their own; only this one is closed.

        Raises:
            CheckpointError: the file ends before.
        """
        if start < 0 or length < 0 or start + length > self.size:
            raise CheckpointError(
                f"{self.path} is truncated or damaged: bytes {start} to {start + length} were "
                f"expected, but the file has {self.size}. Copy or download it again."
            )
        part = copy.copy(self)
        part.start, part.size = self.start + start, length
        return part

    def state(self) -> FileState:
        """Return what tells the open file from others, and from itself after a change."""
        now = os.fstat(self.fileno())
        return FileState(now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)

    def fileno(self) -> int:
        """Return the descriptor of the open file, for mapping."""
        return self._file.fileno()

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def _neighbours(path: Path) -> str:
    """Name the checkpoint files that lie where ``path`` was looked for."""
    if not path.parent.is_dir():
        return f" Neither does the folder {path.parent}."
    names = sorted(p.name for p in path.parent.iterdir() if p.name.endswith(_SUFFIXES))
    if not names:
        return ""
    return f" Checkpoint files in {path.parent}: {', '.join(names[:8])}"


def inside(folder: Path, name: str, *, named_by: Path, links: Path | None = None) -> Path:
    """Return the path of a file that lies in ``folder``, whatever a checkpoint calls it.

    Args:
        folder: where the file must lie.
        name: its name, which comes from elsewhere.
        named_by: what names it, for messages.
        links: a second folder that links may lead into. A model hub's cache keeps the files of a
            folder as links into one folder of blobs.

    Raises:
        CheckpointError: the name is no plain name, or leads out of the folder.
    """
    path = folder / name
    too_long = len(name.encode("utf-8", "surrogatepass")) > _MAX_NAME
    if too_long or any(part in name for part in "/\\\0") or name in ("", ".", ".."):
        raise CheckpointError(
            f"{named_by} names {name[:_MAX_NAME]!r}; only plain names of files beside it are "
            "allowed."
        )
    try:
        target, allowed = path.resolve(), {folder.resolve(), links or folder.resolve()}
    except (OSError, RuntimeError, ValueError) as error:  # such as links that point at each other
        raise CheckpointError(f"{named_by}: {name!r} cannot be followed: {error}") from error
    if target.parent not in allowed:
        raise CheckpointError(
            f"{named_by}: {name} is a link to {target}, outside of its folder. "
            "Copy the file itself beside the others."
        )
    return path
