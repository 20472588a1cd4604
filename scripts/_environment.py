"""Lets the scripts run with any Python once the project's own environment is made."""

import importlib.util
import os
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def use_project_environment() -> None:
    """Go on under ``.venv`` when the calling Python has no PanoVLM installed."""
    if importlib.util.find_spec("panovlm") is not None:
        return
    python = PROJECT / ".venv" / "bin" / "python"
    if not python.exists() or Path(sys.prefix) == PROJECT / ".venv":
        sys.exit("error: PanoVLM is not installed; run `make demo` or `pip install -e .` first.")
    os.execv(python, [str(python), *sys.argv])  # noqa: S606
