"""What the pixels of views follow from besides the panorama: settings, code, libraries."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

import cv2
import numpy as np
import PIL
from PIL import features

from panovlm.config.schema import ImageProcessing


def rendering_identity(settings: ImageProcessing) -> dict[str, Any]:
    """Return all that decides how a panorama becomes views, as JSON can hold it.

    The code is known by its own bytes: a version number would have to be raised by hand.
    """
    return {
        "image_processing": settings.model_dump(mode="json"),
        "code": code_digest("panovlm.panorama"),
        "libraries": {
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "pillow": PIL.__version__,
            "jpeg": features.version("jpg"),
        },
    }


@cache
def code_digest(package: str) -> str:
    """Return the digest of the modules that stand in a package's own folder."""
    total = hashlib.sha256()
    modules = (file for file in files(package).iterdir() if file.name.endswith(".py"))
    for file in sorted(modules, key=lambda file: file.name):
        content = file.read_bytes()
        total.update(f"{file.name} {len(content)}\n".encode() + content)
    return total.hexdigest()
