"""From a path to one checkpoint and the files that belong to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from panovlm.checkpoint.formats import is_checkpoint_folder
from panovlm.checkpoint.formats.lookalike import describe_unfinished
from panovlm.errors import CheckpointError

SIDECAR = "checkpoint_metadata.json"
CONFIG = "config.yaml"
TOKENIZER = "tokenizer"
ADAPTERS = "lora_weights"
SUFFIXES = (".ckpt", ".safetensors", ".pt", ".pth", ".bin")
WHOLE_MODELS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model_fsdp_0",
)
MODEL_CONFIGS = ("model_config.json", "config.json", "panovlm_config.json")
"""Files beside a checkpoint that may hold a whole model configuration, the first one counts."""
TOKENIZER_CONFIG = "tokenizer_config.json"

Purpose = Literal["evaluate", "resume"]


@dataclass(frozen=True)
class Location:
    """One checkpoint, a file or a folder, and its companions (``None``: not there)."""

    checkpoint: Path
    why: str
    """Why this one was chosen, for the log."""
    folder: Path
    """Where its companions stand."""
    sidecar: Path | None
    config: Path | None
    model_config: Path | None
    tokenizer: Path | None
    adapters: Path | None


def locate(path: Path, purpose: Purpose = "evaluate") -> Location:
    """Find the checkpoint that ``path`` means.

    A folder means itself where it is one checkpoint as a whole (distributed, DeepSpeed). Any other
    means its ``best.ckpt``, then ``last.ckpt``, then the newest other checkpoint (for resuming:
    ``last.ckpt`` first). Temporary files are never taken.

    The companions of a file stand beside it, those of a folder in it; of a folder that is named
    like a file (``last.ckpt``), as Lightning does, beside it too.

    Raises:
        CheckpointError: nothing is there.
    """
    folder = path
    if is_checkpoint_folder(path):
        chosen, why = path, "named"
        folder = path.parent if path.suffix == ".ckpt" else path
    elif path.is_dir():
        chosen, why = _choose(path, purpose)
    elif path.is_file():
        chosen, why, folder = path, "named", path.parent
    else:
        raise CheckpointError(
            f"{path} does not exist; give a checkpoint file or a folder that holds one."
        )
    tokenizer = folder if (folder / TOKENIZER_CONFIG).is_file() else _folder(folder / TOKENIZER)
    return Location(
        checkpoint=chosen,
        why=why,
        folder=folder,
        sidecar=_file(folder / SIDECAR),
        config=_file(folder / CONFIG),
        model_config=next(filter(None, (_file(folder / name) for name in MODEL_CONFIGS)), None),
        tokenizer=tokenizer,
        adapters=_folder(folder / ADAPTERS),
    )


def _choose(folder: Path, purpose: Purpose) -> tuple[Path, str]:
    """Return the checkpoint of a folder and the reason."""
    order = ("best.ckpt", "last.ckpt") if purpose == "evaluate" else ("last.ckpt", "best.ckpt")
    for name in order:
        if (folder / name).exists():
            return folder / name, f"{name} comes first"
    found = [p for p in folder.iterdir() if _is_checkpoint(p)]
    lightning = [p for p in found if p.suffix == ".ckpt"]
    if lightning:
        newest = max(lightning, key=lambda p: (p.stat().st_mtime_ns, p.name))
        return newest, f"newest of {len(lightning)} .ckpt"
    for name in WHOLE_MODELS:
        if folder / name in found or _file(folder / name):
            return folder / name, name
    if len(found) == 1:
        return found[0], "the only checkpoint of the folder"
    raise CheckpointError(_nothing_in(folder, found))


def _nothing_in(folder: Path, found: list[Path]) -> str:
    """Say what a folder holds instead of one checkpoint."""
    if found:
        names = ", ".join(sorted(p.name for p in found)[:5])
        return f"{folder} holds several checkpoints ({names}); name one with --checkpoint."
    if unfinished := describe_unfinished(folder):
        return unfinished
    below = sorted({p.parent for p in folder.rglob("*.ckpt") if _is_checkpoint(p)})
    if below:
        names = ", ".join(str(p) for p in below[:5])
        return f"{folder} holds no checkpoint itself; these folders below it do: {names}."
    return (
        f"{folder} holds no checkpoint (looked for best.ckpt, last.ckpt, *.ckpt, "
        f"{WHOLE_MODELS[0]}, {WHOLE_MODELS[2]}); give the folder of one training stage."
    )


def _is_checkpoint(path: Path) -> bool:
    """Tell whether a path may be a checkpoint: by its suffix or content, and not temporary."""
    if path.name.startswith("."):
        return False
    return (path.suffix in SUFFIXES and path.is_file()) or is_checkpoint_folder(path)


def _file(path: Path) -> Path | None:
    return path if path.is_file() else None


def _folder(path: Path) -> Path | None:
    return path if path.is_dir() else None
