"""Writes files so that a crash, a full disk or a second writer never leaves half a file behind.

The bytes go to a temporary file in the same folder, are forced to the disk, and take the final
name in one step (rename). Until that step the file that was there before is untouched; after it
the new one is complete. Temporary files are named ``.<name>.<random>.tmp``.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO, cast

from panovlm.errors import CheckpointError

_MAX_DEPTH = 100
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
# torch.save answers a full disk by a RuntimeError about positions, raised while it handles these.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextmanager
def atomic_write(path: str | Path) -> Generator[BinaryIO]:
    """Open a file for writing that replaces ``path`` only when the block ends without error.

    >>> with atomic_write("weights.bin") as file:  # doctest: +SKIP
    ...     file.write(b"...")

    Args:
        path: the final name. Its folder must exist.

    Yields:
        The temporary file, open for writing and seeking.

    Raises:
        CheckpointError: the file cannot be written, for example because the disk is full. What
            was at ``path`` before is intact, and no temporary file is left. Any other error
            of the block has the same effect and is passed on as it is.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync(path.parent)
    except OSError as error:
        raise CheckpointError(_cannot("write", path, error)) from error
    except RuntimeError as error:
        disk = error.__context__
        if isinstance(disk, OSError) and disk.errno in _DISK:
            raise CheckpointError(_cannot("write", path, disk)) from error
        raise


@contextmanager
def atomic_folder(path: str | Path) -> Generator[Path]:
    """Fill a folder that takes the place of ``path`` only when the block ends without error.

    Args:
        path: the final name. The folder that it lies in must exist; a folder that is there already
            is replaced as a whole, in one step where the system offers it.

    Yields:
        A temporary folder beside ``path``, empty.

    Raises:
        CheckpointError: as for :func:`atomic_write`.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        try:
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                _sync(file)
            _replace_folder(temporary, path)
        finally:
            # Either what was begun and failed, or what was there before and is replaced.
            shutil.rmtree(temporary, ignore_errors=True)
        _sync(path.parent)
    except OSError as error:
        raise CheckpointError(_cannot("write", path, error)) from error


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace ``path`` by a file that holds ``data``; errors as for :func:`atomic_write`."""
    with atomic_write(path) as file:
        file.write(data)


def write_json(path: str | Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as indented UTF-8 JSON.

    Args:
        path: the final name.
        value: dicts with text keys, lists, tuples, texts, ints, finite floats, bools and None.

    Raises:
        CheckpointError: ``value`` holds anything else; the message names the place, and nothing
            is written. Otherwise as for :func:`atomic_write`.
    """
    fault = _json_fault(value, "")
    if fault:
        raise CheckpointError(f"{path} was not written: {fault}")
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        data = f"{text}\n".encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(
            f"{path} was not written: it would hold a text that is no Unicode ({error.reason}): "
            f"{text[max(0, error.start - 30) : error.end]!r}"
        ) from error
    write_bytes(path, data)


def link_or_copy(source: str | Path, path: str | Path) -> None:
    """Make ``path`` the same file as ``source`` in one step: a hard link, else a copy.

    A link takes no space and no time. It is as safe as a copy as long as both files are only ever
    replaced, never changed in place; everything in this module replaces.

    Args:
        source: an existing file.
        path: the name to give it as well; what was there is replaced.

    Raises:
        CheckpointError: ``source`` cannot be read or ``path`` not be written.
    """
    source, path = Path(source), Path(path)
    temporary = _temporary(path)
    try:
        os.link(source.resolve(), temporary)
    except OSError:  # another disk, or a file system without hard links
        try:
            with source.open("rb") as original, atomic_write(path) as file:
                shutil.copyfileobj(original, file, 1 << 20)
        except OSError as error:
            raise CheckpointError(_cannot("read", source, error)) from error
        return
    try:
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise CheckpointError(_cannot("write", path, error)) from error
    finally:
        # Renaming one link onto another of the same file leaves both names (POSIX).
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that a killed process left below a folder nobody writes to now."""
    for path in folder.rglob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    # A file name may have 255 bytes; 40 characters take at most 160 of them.
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}.tmp")


def _replace_folder(temporary: Path, path: Path) -> None:
    """Give ``temporary`` the name ``path``; a folder of that name is then under ``temporary``."""
    if not path.is_dir() or not any(path.iterdir()):
        temporary.rename(path)
        return
    try:
        _exchange(temporary, path)
    except (AttributeError, OSError):  # not Linux, or a file system that cannot
        aside = _temporary(path)
        path.rename(aside)
        temporary.rename(path)
        aside.rename(temporary)


def _exchange(one: Path, other: Path) -> None:
    """Let two names change places in one step (Linux's ``renameat2``)."""
    here, exchange = -100, 2
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))


def _sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk.

    Windows offers no way to do that for a folder, and needs none.
    """
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems cannot sync a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _cannot(action: str, path: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno == errno.ENOENT and action == "write" and not path.parent.is_dir():
        reason = f"the folder {path.parent} does not exist"
    kept = "; no half-written file is left" if action == "write" else ""
    return f"cannot {action} {path}: {reason}{kept}."


def _json_fault(value: Any, place: str, depth: int = 0) -> str:
    """Say what in ``value`` JSON cannot hold, or return an empty text."""
    here = place or "the value"
    if value is None or isinstance(value, (str, bool, int)):
        return ""
    if isinstance(value, float):
        return "" if isfinite(value) else f"{here} is {value}, which JSON cannot hold."
    if depth > _MAX_DEPTH:
        return f"{here} is nested deeper than {_MAX_DEPTH}, or contains itself."
    if isinstance(value, dict):
        mapping = cast("Mapping[Any, Any]", value)
        for key in mapping:
            if not isinstance(key, str):
                return f"{here} has the key {key!r}; keys must be texts."
        items = [(f"{place}.{key}" if place else key, item) for key, item in mapping.items()]
    elif isinstance(value, (list, tuple)):
        items = [(f"{place}[{i}]", v) for i, v in enumerate(cast("list[Any]", value))]
    else:
        kind = type(value)
        return (
            f"{here} is an object of {kind.__module__}.{kind.__qualname__}; JSON holds only "
            "dict, list, tuple, str, int, float, bool and None."
        )
    return next(filter(None, (_json_fault(v, name, depth + 1) for name, v in items)), "")
