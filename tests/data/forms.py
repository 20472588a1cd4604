"""The rows of a table in every other form, written by the libraries that those forms come from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import webdataset
from PIL import Image

from panovlm.data.samples import Sample

FORMS = ("shard", "parquet", "parquet with paths", "arrow", "saved", "imagefolder")


def write_form(form: str, samples: Sequence[Sample], folder: Path) -> str:
    """Write samples of one turn; return the name of the table."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"instruction": s.turns[0][0], "response": s.turns[0][1], **s.columns} for s in samples]
    pictures = [Path(str(sample.image)) for sample in samples]
    if form == "shard":
        return _shards(rows, pictures, folder)
    if form == "imagefolder":
        return _image_folder(rows, pictures, folder)
    if form == "parquet with paths":
        cells: list[Any] = [str(picture) for picture in pictures]
        kind: Any = datasets.Value("string")
    else:
        cells = [{"bytes": picture.read_bytes(), "path": None} for picture in pictures]
        kind = datasets.Image()
    texts = {name: [row[name] for row in rows] for name in rows[0]}
    features = {name: datasets.Value("string") for name in texts}
    data = datasets.Dataset.from_dict(
        {**texts, "image": cells}, features=datasets.Features({**features, "image": kind})
    )
    if form.startswith("parquet"):
        data.to_parquet(folder / "train.parquet", batch_size=3)
        return str(folder / "train.parquet")
    data.save_to_disk(str(folder / "saved"))
    return str(folder / "saved" / ("data-00000-of-00001.arrow" if form == "arrow" else ""))


def _shards(rows: Sequence[dict[str, str]], pictures: Sequence[Path], folder: Path) -> str:
    half = (len(rows) + 1) // 2
    for number, part in enumerate((slice(None, half), slice(half, None))):
        with webdataset.TarWriter(str(folder / f"train-{number:03}.tar")) as sink:
            for place, (row, picture) in enumerate(zip(rows[part], pictures[part], strict=True)):
                key = f"{number}/{place:05}"
                sink.write({"__key__": key, picture.suffix[1:]: picture.read_bytes(), "json": row})
    return str(folder / "train-{000..001}.tar")


def _image_folder(rows: Sequence[dict[str, str]], pictures: Sequence[Path], folder: Path) -> str:
    lines: list[str] = []
    for number, (row, picture) in enumerate(zip(rows, pictures, strict=True)):
        name = f"{number}{picture.suffix}"
        (folder / name).write_bytes(picture.read_bytes())
        lines.append(json.dumps({"file_name": name, **row}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return str(folder)


def write_table(folder: Path, count: int) -> Path:
    """Write a CSV table of pictures of noise that have one colour each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (120, 60), (number * 20, 100, 200)).save(folder / f"{number}.png")
    lines = [
        f"{number}.png,What is {number}?,Number {number}.,k{number % 2}" for number in range(count)
    ]
    file = folder / "table.csv"
    file.write_text("\n".join(["url,instruction,response,kind", *lines, ""]))
    return file
