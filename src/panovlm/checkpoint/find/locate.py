"""From a path to one checkpoint and the files that belong to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from panovlm.checkpoint.formats import fault_of, is_checkpoint_folder
from panovlm.checkpoint.formats.lookalike import describe_unfinished
from panovlm.errors import CheckpointError

SIDECAR = "checkpoint_metadata.json"
"""Document of every checkpoint in its folder that has none of its own."""
OWN_SIDECAR = ".metadata.json"
"""Ending, after the whole name of a checkpoint, of the document about this one alone."""
CONFIG = "config.yaml"
TOKENIZER = "tokenizer"
ADAPTERS = "lora_weights"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
TRAINABLES = (
    "non_lora_trainables.bin",
    "non_lora_trainables.safetensors",
    "mm_projector.bin",
    "mm_projector.safetensors",
)
"""What trainers in LLaVA's manner call the file of everything trained besides adapters."""
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

NAMED = "named"
"""Why a file was chosen that the caller gave."""

Purpose = Literal["evaluate", "resume"]


@dataclass(frozen=True)
class Location:
    """One checkpoint, a file or a folder, and its companions (``None``: not there)."""

    checkpoint: Path
    why: str
    """Why this one was chosen, for the log."""
    passed_over: tuple[str, ...]
    """Newer ones that were not chosen, each with what is wrong with it."""
    folder: Path
    """Where its companions stand."""
    sidecar: Path | None
    config: Path | None
    model_config: Path | None
    tokenizer: Path | None
    adapters: Path | None
    """Folder of PEFT adapters."""

    @property
    def is_split(self) -> bool:
        """Whether the file holds only what was trained besides adapters, by its name."""
        return self.checkpoint.name in TRAINABLES

    def others(self) -> list[str]:
        """Return the names of other checkpoints in the folder, where the choice was not named."""
        if self.why == NAMED:
            return []
        found = [p for p in self.checkpoint.parent.iterdir() if _is_checkpoint(p)]
        return sorted(p.name for p in found if p != self.checkpoint)


def locate(path: Path, purpose: Purpose = "evaluate") -> Location:
    """Find the checkpoint that ``path`` means.

    A folder means itself where it is one checkpoint as a whole (distributed, DeepSpeed). Any other
    means its ``best.ckpt``, then ``last.ckpt``, then the newest other checkpoint that is complete
    (for resuming: ``last.ckpt`` first). Temporary files are never taken. A damaged ``best.ckpt``
    is not replaced by another one: it is an error when it is read.

    The companions of a file stand beside it, those of a folder in it; of a folder that is named
    like a file (``last.ckpt``), as Lightning does, beside it too.

    Raises:
        CheckpointError: nothing is there.
    """
    passed_over: list[str] = []
    folder = path
    if is_checkpoint_folder(path):
        chosen, why = path, NAMED
        folder = path.parent if path.suffix == ".ckpt" else path
    elif path.is_dir():
        chosen, why = _choose(path, purpose, passed_over)
    elif path.name in ADAPTER_FILES and path.is_file():
        raise CheckpointError(_adapters_only(path.parent))
    elif path.is_file():
        chosen, why, folder = path, NAMED, path.parent
    else:
        raise CheckpointError(
            f"{path} does not exist; give a checkpoint file or a folder that holds one."
        )
    tokenizer = folder if (folder / TOKENIZER_CONFIG).is_file() else _folder(folder / TOKENIZER)
    return Location(
        checkpoint=chosen,
        why=why,
        passed_over=tuple(passed_over),
        folder=folder,
        sidecar=_file(own_sidecar(chosen)) or _file(folder / SIDECAR),
        config=_file(folder / CONFIG),
        model_config=next(filter(None, (_file(folder / name) for name in MODEL_CONFIGS)), None),
        tokenizer=tokenizer,
        adapters=folder if (folder / ADAPTER_CONFIG).is_file() else _folder(folder / ADAPTERS),
    )


def own_sidecar(checkpoint: Path) -> Path:
    """Return the name of the document about one checkpoint alone (``last.ckpt.metadata.json``).

    Where it is there, the folder's :data:`SIDECAR` does not count.
    """
    return checkpoint.with_name(checkpoint.name + OWN_SIDECAR)


def _choose(folder: Path, purpose: Purpose, passed_over: list[str]) -> tuple[Path, str]:
    """Return the checkpoint of a folder and the reason."""
    order = ("best.ckpt", "last.ckpt") if purpose == "evaluate" else ("last.ckpt", "best.ckpt")
    for name in order:
        if (folder / name).exists():
            return folder / name, f"{name} comes first"
        if (folder / name).is_symlink():
            raise CheckpointError(
                f"{folder / name} is a link to {(folder / name).readlink()}, which is not there. "
                "Put that back or remove the link; nothing else is put in its place by itself."
            )
    found = [p for p in folder.iterdir() if _is_checkpoint(p)]
    lightning = [p for p in found if p.suffix == ".ckpt"]
    if lightning:
        newest = _newest_complete(folder, lightning, passed_over)
        return newest, f"newest{' complete' if passed_over else ''} of {len(lightning)} .ckpt"
    for name in WHOLE_MODELS:
        if folder / name in found or _file(folder / name):
            return folder / name, name
    parts = [folder / name for name in TRAINABLES if (folder / name).is_file()]
    if len(parts) == 1:
        return parts[0], "what was trained besides the adapters"
    if not found and (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(_adapters_only(folder))
    if len(found) == 1:
        return found[0], "the only checkpoint of the folder"
    raise CheckpointError(_nothing_in(folder, found))


def _newest_complete(folder: Path, files: list[Path], passed_over: list[str]) -> Path:
    """Return the newest checkpoint that is complete; one alone is taken as it is."""
    by_age = sorted(files, key=lambda p: (p.stat().st_mtime_ns, p.name), reverse=True)
    if len(by_age) == 1:
        return by_age[0]
    for path in by_age:
        fault = fault_of(path)
        if fault is None:
            return path
        passed_over.append(fault)
    faults = "\n  ".join(passed_over)
    raise CheckpointError(f"{folder} holds no complete checkpoint:\n  {faults}")


def _adapters_only(folder: Path) -> str:
    """Say that a folder of adapters is no whole model, and where the rest may be."""
    beside = sorted(p.name for p in folder.parent.iterdir() if _is_checkpoint(p))
    hint = f" {folder.parent} holds {', '.join(beside[:3])}; give that." if beside else ""
    return (
        f"{folder} holds PEFT adapters of a language model, and no resampler or projector to go "
        f"with them. Give the checkpoint that they belong to, or put {TRAINABLES[0]} (what was "
        f"trained besides the adapters) beside them.{hint}"
    )


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
    """Tell whether a path may be a checkpoint: by its suffix or content.

    Neither temporary files are, nor adapters.
    """
    if path.name.startswith(".") or path.name in ADAPTER_FILES:
        return False
    return (path.suffix in SUFFIXES and path.is_file()) or is_checkpoint_folder(path)


def _file(path: Path) -> Path | None:
    return path if path.is_file() else None


def _folder(path: Path) -> Path | None:
    return path if path.is_dir() else None
