"""Tensors of panoramas in files, under names that follow from all that they were made of.

A name is a digest, so that an entry cannot go stale: whatever is made of other pixels, or in
another way, has another name. Files are written whole or not at all, so that several processes may
write the same one, and each begins with the digest of the rest, so that damage is found whenever it
is read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from safetensors.torch import load, save
from torch import Tensor

from panovlm.atomic import write_bytes
from panovlm.errors import CheckpointError, ConfigError, DataError
from panovlm.panorama.picture import Image, as_picture

GIB = 2**30
_DIGEST = hashlib.sha256().digest_size


class DamagedEntryError(DataError):
    """An entry is not what was written; it is removed, so that it can be made anew."""


@dataclass(frozen=True)
class Store:
    """Entries of one kind in a folder that several runs may share.

    Attributes:
        folder: it is made when the first entry is written.
        kind: what the entries are; each kind has a folder of its own.
    """

    folder: Path
    kind: Literal["views", "features"]

    def path(self, key: str) -> Path:
        """Return the file of an entry."""
        return self.folder / self.kind / key[:2] / key

    def __contains__(self, key: str) -> bool:
        return self.path(key).is_file()

    def read(self, key: str) -> dict[str, Tensor] | None:
        """Return the tensors of an entry, ``None`` where there is none.

        Raises:
            DamagedEntryError: it is not what was written.
            ConfigError: the folder cannot be read.
        """
        path = self.path(key)
        try:
            with path.open("rb") as file:
                told, content = file.read(_DIGEST), file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(f"{path}: {error.strerror}") from error
        if hashlib.sha256(content).digest() != told:
            path.unlink(missing_ok=True)
            raise DamagedEntryError(f"{path} was damaged and has been removed")
        return load(content)

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write an entry; one of this name is replaced by its like.

        Raises:
            ConfigError: it cannot be written, for example because the disk is full.
        """
        path, content = self.path(key), save({n: t.contiguous() for n, t in tensors.items()})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, hashlib.sha256(content).digest() + content)
        except (OSError, CheckpointError) as error:
            raise self._unusable(str(error)) from error

    def require_room(self, entries: int, missing: int, size: int, limit: float) -> None:
        """Refuse entries that would take more room than there is.

        Args:
            entries: entries of the run.
            missing: how many of them are still to be written, as far as that is known.
            size: bytes of each.
            limit: GiB that all of them may take.

        Raises:
            ConfigError: they take more, or the disk has less room.
        """
        needed = f"the {self.kind} of {entries} panoramas take {size_text(entries * size)}"
        if entries * size > limit * GIB:
            raise ConfigError(
                f"{needed} on disk, but training.cache_limit is {limit:g} GiB; raise it, or switch "
                f"training.cache_{self.kind} off."
            )
        there = (self.folder, *self.folder.absolute().parents)
        free = shutil.disk_usage(next(place for place in there if place.is_dir())).free
        if missing * size > free:
            raise ConfigError(
                f"{needed}, of which {size_text(missing * size)} are still to be written, but the "
                f"disk of {self.folder} has only {size_text(free)} left; choose another "
                f"paths.cache_dir, or switch training.cache_{self.kind} off."
            )

    def _unusable(self, reason: str) -> ConfigError:
        return ConfigError(
            f"{self.kind} cannot be kept: {reason.rstrip('.')}. Choose another folder "
            f"(paths.cache_dir), or keep no {self.kind} (training.cache_{self.kind}: false)."
        )


def key_of(parts: Mapping[str, Any]) -> str:
    """Return the name of what is made of these parts, which JSON can hold."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def picture_identity(image: Image) -> dict[str, Any]:
    """Return what identifies a picture: the digest of its bytes, and how it shows the sphere.

    Raises:
        DataError: it cannot be read.
    """
    picture = as_picture(image)
    try:
        with picture.open() as stream:
            content = hashlib.file_digest(cast("Any", stream), "sha256").hexdigest()
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error
        raise DataError(f"cannot read the panorama {picture}: {reason}") from error
    return {"content": content, "input": picture.input.model_dump()}


def size_text(size: float) -> str:
    """Return a number of bytes for people."""
    units = ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
    unit, name = next((unit for unit in units if size >= unit[0] / 10), (1, "bytes"))
    return f"{size / unit:.{2 if unit > 1 else 0}f} {name}"
