"""Recognises checkpoints that hold names without weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from panovlm.checkpoint.formats import TensorInfo, is_checkpoint_folder
from panovlm.errors import CheckpointError


def refuse_shells(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Stop at placeholders: under ZeRO-3 a module holds none of its own weights.

    A state dict that is saved then, without gathering them, has tensors of shape ``[0]``.

    Args:
        path: the checkpoint.
        tensors: what it holds.

    Raises:
        CheckpointError: some tensors are placeholders; the message names the folder nearby that
            holds the weights, if there is one.
    """
    shells = [name for name, info in tensors.items() if info.shape == (0,)]
    if not shells:
        return
    near = max(_folders_near(path), key=lambda p: (p.stat().st_mtime_ns, p.name), default=None)
    if near is None:
        way_out = (
            "No folder with the shares of the processes (latest, global_stepN, *.distcp) is near "
            "it; give the one that training wrote."
        )
    else:
        way_out = f"The weights are in {near}: give that folder."
    raise CheckpointError(
        f"{path} is a shell: {len(shells)} of its {len(tensors)} tensors have the shape [0] (such "
        f"as {shells[0]!r}). It was saved under ZeRO-3 without gathering the weights. {way_out}"
    )


def _folders_near(path: Path) -> Iterator[Path]:
    """Yield the folders around a file that are checkpoints themselves."""
    home = path.parent
    for place in (home, home.parent):
        try:
            folders = [place, *(entry for entry in place.iterdir() if entry.is_dir())]
        except OSError:  # a folder that may not be listed is no help
            continue
        yield from filter(is_checkpoint_folder, folders)
