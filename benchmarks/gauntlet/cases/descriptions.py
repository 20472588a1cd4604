"""Descriptions that are there in part, not at all, or are those of another checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from benchmarks.gauntlet.case import Case, Made
from benchmarks.gauntlet.stock import (
    LANGUAGES,
    TOWERS,
    Stock,
    document_of,
    settings_of,
    write_run,
)

from panovlm.checkpoint.fields import nest
from panovlm.checkpoint.repair.metadata import add_metadata
from panovlm.checkpoint.resolve import resolve
from panovlm.models.model import PanoramaVLM

GROUP = "Descriptions"
UNUSUAL: dict[str, Any] = {
    "overlap_ratio": 0.25,
    "image": {"crop_strategy": "sliding_window", "fov_deg": 72.0},
    "sizes": {"norm_first": False},
}
USUAL: dict[str, Any] = {
    "image": {"crop_strategy": "anyres_e2p", "image_mean": None, "image_std": None},
    "tower": {**TOWERS["siglip"], "hidden_size": 64, "num_attention_heads": 1},
    "language": {**LANGUAGES["qwen3"], "max_position_embeddings": 32768},
}
"""What is assumed where nothing is recorded."""
BARE: dict[str, Any] = {"inside": None, "hyper": None, "beside": None}
Maker = Callable[[Stock, Path], Made]


def written(settings: dict[str, Any], **options: Any) -> Maker:
    def make(stock: Stock, folder: Path) -> Made:
        model = stock.model(**settings)
        return Made(write_run(model, folder, **options), model)

    return make


def asked_for(
    path: Path, model: PanoramaVLM, stated: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Answer everything that PanoVLM asks for about a checkpoint, given what was stated."""
    true = settings_of(model)
    return {name: _value(true, name) for name in resolve(path, stated).assumed}


def _value(true: dict[str, Any], name: str) -> Any:
    if name in true:
        return true[name]
    parent, _, leaf = name.rpartition(".")
    return true[parent][leaf]  # inside a backbone's configuration


def everything_stated(stock: Stock, folder: Path) -> Made:
    model = stock.model(**UNUSUAL)
    path = write_run(model, folder, **BARE)
    return Made(path, model, stated=asked_for(path, model))


def settled_for_good(stock: Stock, folder: Path) -> Made:
    """``add-metadata --set`` wrote down what the user knows."""
    model = stock.model(**UNUSUAL)
    path = write_run(model, folder, **BARE)
    add_metadata(path, overrides=asked_for(path, model))
    return Made(path, model)


def config_yaml(stock: Stock, folder: Path) -> Made:
    """The experiment's file is all that is left."""
    model = stock.model(**UNUSUAL)
    path = write_run(model, folder, **BARE)
    settings = nest({k: v for k, v in settings_of(model).items() if v is not None})
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return Made(path, model)


def without(*names: str, probe: bool = True) -> Maker:
    """Leave settings out of both copies of the document."""

    def make(stock: Stock, folder: Path) -> Made:
        model = stock.model(**UNUSUAL)
        document = document_of(model, dict.fromkeys(names, ...), probe=probe)
        recipe = {"recipe": document["recipe"]}
        return Made(write_run(model, folder, beside=document, inside=document, hyper=recipe), model)

    return make


def document(change: Callable[[dict[str, Any]], Any], *, inside: bool = True) -> Maker:
    """Change the document beside the file, as a whole."""

    def make(stock: Stock, folder: Path) -> Made:
        model = stock.model(**UNUSUAL)
        beside = document_of(model)
        beside = change(beside) or beside
        return Made(write_run(model, folder, beside=beside, inside=inside), model)

    return make


def cut_in_half(found: dict[str, Any]) -> str:
    text = json.dumps(found, indent=2)
    return text[: len(text) // 2]


def foreign(other: dict[str, Any], *, inside: bool) -> Maker:
    """The document beside the file was copied from another run."""

    def make(stock: Stock, folder: Path) -> Made:
        model, stranger = stock.model(**UNUSUAL), stock.model(**other)
        options: dict[str, Any] = {} if inside else {"inside": None, "hyper": None}
        return Made(write_run(model, folder, beside=document_of(stranger), **options), model)

    return make


def foreign_tokenizer(stock: Stock, folder: Path) -> Made:
    model = stock.model()
    path = write_run(model, folder, tokenizer=False, inside=None)
    other = stock.model(texts=["where does the yellow cone stand and who is in front of it ?"])
    write_run(other, folder / "other")
    (folder / "other" / "tokenizer").rename(folder / "tokenizer")
    return Made(path, model)


SAME_SHAPES = {"seed": 2, "sizes": {"norm_first": True}}
OTHER_SHAPES = {"seed": 2, "sizes": {"hidden_dim": 40}}
MAKERS: dict[str, tuple[Maker, bool]] = {
    "beside the file only": (written(UNUSUAL, inside=None, hyper=None), True),
    "inside the file only": (written(UNUSUAL, beside=None, tokenizer=False), True),
    "both without probe": (without(probe=False), True),
    "none, usual settings": (written(USUAL, **BARE), True),
    "none, norm last": (written({**USUAL, "sizes": {"norm_first": False}}, **BARE), True),
    "none, other overlap": (written({**USUAL, "overlap_ratio": 0.25}, **BARE), True),
    "none, other views": (
        written({**USUAL, "image": {**USUAL["image"], "fov_deg": 60.0}}, **BARE),
        True,
    ),
    "none, tower of 2 heads": (
        written({**USUAL, "tower": {**USUAL["tower"], "num_attention_heads": 2}}, **BARE),
        True,
    ),
    "none, everything asked for is stated": (everything_stated, True),
    "none, settled for good by add-metadata": (settled_for_good, True),
    "config.yaml only, without what is unset": (config_yaml, False),
    "overlap missing in it": (without("models.overlap_ratio"), False),
    "overlap missing in it, no probe": (without("models.overlap_ratio", probe=False), True),
    "resampler missing in it": (
        without("models.resampler_config", "models.resampler_type"),
        False,
    ),
    "views missing in it": (without("image_processing"), False),
    "cut in half beside, whole inside": (document(cut_in_half), False),
    "cut in half, none inside": (document(cut_in_half, inside=False), False),
    "no JSON": (document(lambda found: "hello"), False),
    "of a newer version": (document(lambda found: {**found, "schema_version": 99}), False),
    "with a field nobody knows": (document(lambda found: {**found, "speed": 3}), False),
    "of another run, other shapes": (foreign(OTHER_SHAPES, inside=True), False),
    "of another run, other shapes, none inside": (foreign(OTHER_SHAPES, inside=False), False),
    "of another run, same shapes": (foreign(SAME_SHAPES, inside=True), False),
    "of another run, same shapes, none inside": (foreign(SAME_SHAPES, inside=False), False),
    "tokenizer of another run beside it": (foreign_tokenizer, False),
}


def cases() -> Iterator[Case]:
    """Yield whole, partial, lost and foreign descriptions."""
    for name, (make, valid) in MAKERS.items():
        yield Case(GROUP, name, make, valid=valid)
