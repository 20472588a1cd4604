"""Keeps other libraries' advice off the screen, so that our own messages can be read."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from panovlm.errors import AssumedSettingsWarning


def quiet() -> None:
    """Silence hints about hardware, loaders, retries and deprecated names inside the libraries.

    Call it before torch, transformers or lightning are imported. Our own warnings stay, and say
    that they are warnings.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not sys.stderr.isatty():  # in a log, bars of downloads and loading are only noise
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # It warns of kernels that it does not find, which are not used here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Every command lists what is assumed by itself.
    warnings.filterwarnings("ignore", category=AssumedSettingsWarning)
    for module in ("lightning", "torch", "transformers", "peft"):
        warnings.filterwarnings("ignore", module=rf"{module}(\..*)?$")


def quiet_trainer() -> None:
    """Silence the trainer's hints; call it after lightning is imported, which sets its level."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
