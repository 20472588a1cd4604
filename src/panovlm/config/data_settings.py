"""Settings of the tables that an experiment is trained and evaluated on."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from panovlm.config.base import Field, StrictModel
from panovlm.config.image_input import ImageInput
from panovlm.config.readers import Before


class WeightedTable(StrictModel):
    """A training table that is read more or less often than once per epoch."""

    path: str
    """The table."""
    weight: float = Field(default=1.0, gt=0, le=1000)
    """How often each of its rows is taken per epoch, on average."""


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str | dict | WeightedTable) else _none_or_many(value)


def _one_or_many_paths(value: Any) -> Any:
    return (value,) if isinstance(value, str) else _none_or_many(value)


def _none_or_many(value: Any) -> Any:
    return () if value is None else value


TrainTables = Annotated[tuple[str | WeightedTable, ...], Before(_one_or_many)]
PlainTables = Annotated[tuple[str, ...], Before(_one_or_many_paths)]


class StageData(StrictModel):
    """Training and validation tables of one stage."""

    csv_train: TrainTables = ()
    """Training tables."""
    csv_val: PlainTables = ()
    """Validation tables."""


Kind = Literal["colour", "shape", "where", "exists", "count", "caption"]
"""What a question about a synthetic scene asks for."""


class SyntheticScenes(StrictModel):
    """Ray-cast scenes to write before training, when they are not there yet."""

    root: str
    """Folder for images and tables (train.csv, val.csv, test.csv, and alike.csv if wanted)."""
    train_scenes: int = Field(default=2000, ge=1)
    """Panoramas of train.csv."""
    val_scenes: int = Field(default=50, ge=1)
    """Panoramas of val.csv."""
    test_scenes: int = Field(default=200, ge=1)
    """Panoramas of test.csv."""
    train_fewest: int = Field(default=3, ge=1, le=5)
    """Fewest objects in a training scene; scenes with one or two are an easier start. Validation
    and test scenes have three to five."""
    alike_scenes: int = Field(default=0, ge=0)
    """Panoramas of alike.csv, with a table of their own: eight objects of one colour and one shape,
    and a question about each of the two. They teach a tower without pretrained weights what it
    sees, before it matters which object is meant."""
    questions_per_scene: int = Field(default=8, ge=1)
    """Most rows per panorama."""
    kinds: tuple[Kind, ...] = Field(default=get_args(Kind), min_length=1)
    """Kinds of questions to ask."""
    width: int = Field(default=256, ge=128)
    """Pixels of the panorama's width; its height is half of that."""
    seed: int = Field(default=0, ge=0)
    """Seed of the scenes."""


class Data(StrictModel):
    """Tables of image paths and texts."""

    csv_train: TrainTables = ()
    """Training tables."""
    csv_val: PlainTables = ()
    """Validation tables."""
    csv_test: PlainTables = ()
    """Tables of an evaluation."""
    input: ImageInput = Field(default_factory=ImageInput)
    """How pictures show the sphere of which their row says nothing."""
    stream_blocks: int | None = Field(default=None, ge=1)
    """Read row groups of Parquet files, and shards, one after the other in an order of chance, so
    many at a time, with their rows shuffled among each other; Parquet files are then read as they
    are. Unset: all rows are shuffled, for which Parquet files are copied into a cache first."""
    skip_unreadable_images: bool = False
    """Leave rows out, counted and listed, whose image cannot be read; otherwise it is an error."""
    synthetic: SyntheticScenes | None = None
    """Scenes to make first; unset: none."""
