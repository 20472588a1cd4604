"""Read-only access to the bytes of one regular file, at any position."""

from __future__ import annotations

import stat
from pathlib import Path
from types import TracebackType

from panovlm.checkpoint.formats.lookalike import describe_folder
from panovlm.errors import CheckpointError

_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".index.json")


class Source:
    """An open checkpoint file; use it in a ``with`` statement.

    Args:
        path: the file.

    Attributes:
        path: the file.
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
            self._file.seek(position)
            parts = [self._file.read(length)]
            while sum(map(len, parts)) < length and parts[-1]:
                parts.append(self._file.read(length - sum(map(len, parts))))
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error}") from error
        data = b"".join(parts)
        if len(data) < length:
            raise CheckpointError(f"{self.path} became shorter while it was read.")
        return data

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
