"""From a path to one checkpoint file and the files that belong to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
)
MODEL_CONFIGS = ("model_config.json", "config.json", "panovlm_config.json")
"""Files beside a checkpoint that may hold a whole model configuration, the first one counts."""
TOKENIZER_CONFIG = "tokenizer_config.json"

Purpose = Literal["evaluate", "resume"]


@dataclass(frozen=True)
class Location:
    """One checkpoint file and its companions (``None``: not there)."""

    checkpoint: Path
    why: str
    """Why this file was chosen, for the log."""
    sidecar: Path | None
    config: Path | None
    model_config: Path | None
    tokenizer: Path | None
    adapters: Path | None


def locate(path: Path, purpose: Purpose = "evaluate") -> Location:
    """Find the checkpoint that ``path`` means.

    A folder means its ``best.ckpt``, then ``last.ckpt``, then the newest other checkpoint (for
    resuming: ``last.ckpt`` first). Temporary files are never taken.

    Raises:
        CheckpointError: nothing is there.
    """
    if path.is_dir():
        chosen, why = _choose(path, purpose)
    elif path.is_file():
        chosen, why = path, "named"
    else:
        raise CheckpointError(
            f"{path} does not exist; give a checkpoint file or a folder that holds one."
        )
    folder = chosen.parent
    tokenizer = folder if (folder / TOKENIZER_CONFIG).is_file() else _folder(folder / TOKENIZER)
    return Location(
        checkpoint=chosen,
        why=why,
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
        if (folder / name).is_file():
            return folder / name, f"{name} comes first"
    found = [p for p in folder.iterdir() if _is_checkpoint(p)]
    lightning = [p for p in found if p.suffix == ".ckpt"]
    if lightning:
        newest = max(lightning, key=lambda p: (p.stat().st_mtime_ns, p.name))
        return newest, f"newest of {len(lightning)} .ckpt file(s)"
    for name in WHOLE_MODELS:
        if (folder / name).is_file():
            return folder / name, name
    if len(found) == 1:
        return found[0], "the only checkpoint of the folder"
    raise CheckpointError(_nothing_in(folder, found))


def _nothing_in(folder: Path, found: list[Path]) -> str:
    """Say what a folder holds instead of one checkpoint."""
    if found:
        names = ", ".join(sorted(p.name for p in found)[:5])
        return f"{folder} holds several checkpoints ({names}); name one with --checkpoint."
    below = sorted({p.parent for p in folder.rglob("*.ckpt") if _is_checkpoint(p)})
    if below:
        names = ", ".join(str(p) for p in below[:5])
        return f"{folder} holds no checkpoint itself; these folders below it do: {names}."
    return (
        f"{folder} holds no checkpoint (looked for best.ckpt, last.ckpt, *.ckpt, "
        f"{WHOLE_MODELS[0]}, {WHOLE_MODELS[2]}); give the folder of one training stage."
    )


def _is_checkpoint(path: Path) -> bool:
    """Tell whether a file may be a checkpoint: a known suffix, and no temporary file."""
    return path.suffix in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _file(path: Path) -> Path | None:
    return path if path.is_file() else None


def _folder(path: Path) -> Path | None:
    return path if path.is_dir() else None
