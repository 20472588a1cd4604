"""Synthetic scenes on disk: pictures, tables, and a note of the settings they were made with."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

from PIL import Image

from panovlm.config.schema import SyntheticScenes
from panovlm.data.synthetic.questions import Question, draw_look, draw_questions
from panovlm.data.synthetic.render import render
from panovlm.data.synthetic.scene import FEWEST, draw_alike, draw_scene
from panovlm.errors import DataError

VERSION = 2
"""Raised with every change of what the same settings give, so that old folders are rewritten."""

NOTE = "scenes.json"
COLUMNS = ("url", "instruction", "response", "kind", "yaw", "seam")
"""Columns of the tables. ``yaw`` is that of the solid asked about, in degrees, empty when the
question is about none; ``seam`` is 1 when that solid straddles the seam (yaw ±180), else 0."""

_logger = logging.getLogger(__name__)


def write_scenes(settings: SyntheticScenes) -> None:
    """Write the scenes, unless the folder already holds exactly these.

    The folder gets ``train.csv``, ``val.csv``, ``test.csv``, with ``alike_scenes`` also
    ``alike.csv``, then ``images/{split}-000001.jpg`` and, last, ``scenes.json`` with a digest of
    the settings. All of it is made in a temporary folder
    beside and then renamed, so the folder is complete or not there. Scenes of other settings are
    replaced. The same settings give the same scenes and questions everywhere; the splits
    draw from different seeds and share no scene.

    Args:
        settings: Folder, numbers of scenes, width of the pictures and seed.

    Raises:
        DataError: The folder holds something else, which would be lost.
    """
    root = Path(settings.root)
    if _is_current(root, settings):
        return
    _refuse_foreign_files(root, settings)
    root.parent.mkdir(parents=True, exist_ok=True)
    _logger.info("writing synthetic scenes to %s", root)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as parent:
        fresh = Path(parent) / "fresh"
        (fresh / "images").mkdir(parents=True)
        for split, count in _splits(settings).items():
            _write_split(fresh, split, count, settings)
        note = {"digest": _digest(settings), "version": VERSION, "settings": _content(settings)}
        (fresh / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
        if _is_current(root, settings):
            return  # another process was faster
        if root.exists():
            root.rename(Path(parent) / "replaced")
        fresh.rename(root)


def _refuse_foreign_files(root: Path, settings: SyntheticScenes) -> None:
    """Raise unless the folder is absent, empty, or holds scenes and nothing else."""
    if not root.exists():
        return
    names = {path.name for path in root.iterdir()} if root.is_dir() else {root.name}
    own = {NOTE, "images", *(f"{split}.csv" for split in _splits(settings))}
    if names and (NOTE not in names or names - own):
        foreign = sorted(names - own) or sorted(names)
        raise DataError(
            f"synthetic scenes cannot be written to {root}, which would delete what is there "
            f"({', '.join(foreign[:5])}); choose another folder with data.synthetic.root, or "
            "remove this one"
        )


def _is_current(root: Path, settings: SyntheticScenes) -> bool:
    """Tell whether the folder holds all scenes of these settings."""
    note = root / NOTE
    if not note.is_file():
        return False
    try:
        digest = json.loads(note.read_text(encoding="utf-8"))["digest"]
    except (ValueError, KeyError, TypeError):
        return False
    splits = _splits(settings)
    return (
        digest == _digest(settings)
        and all((root / f"{split}.csv").is_file() for split in splits)
        and len(list((root / "images").glob("*.jpg"))) == sum(splits.values())
    )


def _splits(settings: SyntheticScenes) -> dict[str, int]:
    splits = {
        "train": settings.train_scenes,
        "val": settings.val_scenes,
        "test": settings.test_scenes,
    }
    return splits | ({"alike": settings.alike_scenes} if settings.alike_scenes else {})


def _content(settings: SyntheticScenes) -> dict[str, object]:
    """Return the settings that decide the content, wherever it is written."""
    plain = settings.model_dump(mode="json")
    del plain["root"]
    return plain


def _digest(settings: SyntheticScenes) -> str:
    text = json.dumps([VERSION, _content(settings)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _write_split(folder: Path, split: str, count: int, settings: SyntheticScenes) -> None:
    with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(COLUMNS)
        for number in range(1, count + 1):
            url = f"images/{split}-{number:06}.jpg"
            table.writerows(_write_scene(folder, url, split, number, settings))


def _write_scene(
    folder: Path, url: str, split: str, number: int, settings: SyntheticScenes
) -> Iterator[tuple[object, ...]]:
    """Write the picture of one scene and yield its rows."""
    rng = Random(f"{settings.seed}/{split}/{number}")
    if split == "alike":
        scene = draw_alike(rng)
        questions = draw_look(scene, rng)
    else:
        scene = draw_scene(rng, settings.train_fewest if split == "train" else FEWEST)
        questions = draw_questions(scene, settings.questions_per_scene, rng, settings.kinds)
    picture = Image.fromarray(render(scene, settings.width))
    picture.save(folder / url, quality=95, subsampling=0)
    for question in questions:
        yield (url, question.text, question.answer, question.kind, *_place(question))


def _place(question: Question) -> tuple[str, int]:
    """Return the cells ``yaw`` and ``seam``."""
    if question.solid is None:
        return "", 0
    return f"{question.solid.yaw:.1f}", int(question.solid.straddles_seam)
