"""Configuration files of backbones that are named, not described, by a checkpoint.

Only files on this machine are read here: a local folder, or the Hugging Face cache. No torch, no
network.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panovlm.errors import CheckpointError

UNNAMED = "unnamed-"
"""Beginning of the label of a backbone that nothing names; its family follows."""

VISION_PART = {
    "siglip": "siglip_vision_model",
    "siglip2": "siglip2_vision_model",
    "clip": "clip_vision_model",
}
"""Two-tower families and the type of their vision part."""


def named_file(name: str, file: str) -> Path | None:
    """Return ``file`` of the repository or folder ``name``, if it is on this machine."""
    if not name:
        return None
    folder = Path(name).expanduser()
    if folder.is_dir():
        found = folder / file
        return found if found.is_file() else None
    if name.count("/") != 1 or name.startswith((".", "/")):
        return None
    return _cached(name, file)


def _cached(name: str, file: str) -> Path | None:
    """Return a file of the Hugging Face cache (``models--org--name/snapshots/<revision>/``)."""
    caches = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    home = Path(os.environ.get("HF_HOME", caches / "huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    repository = cache / f"models--{name.replace('/', '--')}"
    main = repository / "refs" / "main"
    if not main.is_file():
        return None
    found = repository / "snapshots" / main.read_text(encoding="utf-8").strip() / file
    return found if found.is_file() else None


def named_config(name: str) -> dict[str, Any] | None:
    """Return the ``config.json`` of a named backbone, or ``None`` when it is not here.

    Raises:
        CheckpointError: the file is there and is no JSON object.
    """
    return _read(named_file(name, "config.json"))


def named_processor(name: str) -> dict[str, Any] | None:
    """Return the image processor's configuration of a named tower, or ``None``."""
    own = _read(named_file(name, "preprocessor_config.json"))
    joint = _read(named_file(name, "processor_config.json")) if own is None else None
    return own if joint is None else joint.get("image_processor")


def processed_size(processor: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the (height, width) of the pictures that an image processor gives.

    Args:
        processor: content of a ``preprocessor_config.json``, old or new.

    Returns:
        ``None`` where it leaves the size as it is, or does not tell.
    """
    crops = processor.get("do_center_crop", False)
    size = processor.get("crop_size" if crops else "size")
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        size = (size.get("height", edge), size.get("width", edge))
    match (size, crops or processor.get("do_resize", True)):
        case ([int() as height, int() as width], True):
            return height, width
        case (int() as side, True):
            return side, side
        case _:
            return None


def vision_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tower's configuration of a configuration that may hold two towers."""
    kind = config.get("model_type")
    if "vision_config" not in config:
        return dict(config)
    part = dict(config["vision_config"])
    part.setdefault("model_type", VISION_PART.get(str(kind), str(kind)))
    return part


def resized(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return a language model's configuration with the number of tokens that training gave it.

    An id of padding that lies behind the last of them is left out; no embedding can be built
    with it.
    """
    pad = config.get("pad_token_id")
    kept = pad if isinstance(pad, int) and pad < rows else None
    return {**config, "vocab_size": rows, "pad_token_id": kept}


def _read(path: Path | None) -> dict[str, Any] | None:
    """Parse a JSON object."""
    if path is None:
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); fetch the file again.") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} holds no JSON object; fetch the file again.")
    return document
