"""``training.save: trainable``: frozen backbones stay with the models that they came from."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModel, AutoModelForCausalLM

from panovlm.checkpoint.resolve import resolve
from panovlm.errors import CheckpointError, ConfigError, ContradictionError
from panovlm.models.model import PanoramaVLM
from panovlm.training.run import train
from panovlm.training.rundir import BEST, LAST

SMALL = Path(__file__).parent.parent / "small.yaml"
PREFIXES = ("vision_backbone.encoder.", "language_model.")
TRAINS = "training.stage_configs.{}.trainable={}"


@pytest.fixture(scope="module")
def settings_of(make_settings: Any, backbones: dict[str, Path]) -> Any:
    def of(runs: Path, *overrides: str) -> Any:
        return make_settings(
            runs,
            "models.vision_config=null",
            f"models.vision_name={backbones['vision']}",
            "models.language_config=null",
            f"models.language_model_name={backbones['language']}",
            TRAINS.format("resampler", "{language_model: false}"),
            "training.save=trainable",
            *overrides,
        )

    return of


def quietly(settings: Any, **options: Any) -> Path:
    return train(settings, console=Console(file=io.StringIO()), **options)


@pytest.fixture(scope="module")
def folders(settings_of: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run folders of all three stages; the first one trains the tower's last block."""
    last = quietly(settings_of(tmp_path_factory.mktemp("runs")))
    return {path.name: path / last.name for path in last.parents[1].iterdir()}


def weights(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True)["state_dict"]
    del state["model.recipe_bytes"]
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


@pytest.mark.parametrize("stage", ["vision", "resampler", "finetune"])
def test_the_file_holds_what_is_not_in_the_named_models(
    stage: str, folders: dict[str, Path], backbones: dict[str, Path]
) -> None:
    stored = weights(folders[stage] / BEST)
    tower = AutoModel.from_pretrained(backbones["vision"]).state_dict()
    kept = {n.removeprefix(PREFIXES[0]) for n in stored if n.startswith(PREFIXES[0])}
    assert kept == {name for name in tower if name.startswith("encoder.layers.1.")}
    text = {name for name in stored if name.startswith(PREFIXES[1])}
    tables = {"embed_tokens.weight", "lm_head.weight"}  # the tokenizer has grown
    assert all(n.split(".")[-2] + ".weight" in tables or "lora_" in n for n in text)
    assert any("lora_" in name for name in text) == (stage == "finetune")


@pytest.mark.parametrize("stage", ["vision", "resampler", "finetune"])
def test_it_loads_as_the_model_that_was_trained(
    stage: str, folders: dict[str, Path], backbones: dict[str, Path]
) -> None:
    loaded = PanoramaVLM.from_checkpoint(folders[stage], strict=True)
    found, stored = loaded.state_dict(), weights(folders[stage] / BEST)
    assert all(torch.equal(found[name], tensor) for name, tensor in stored.items())
    tower = AutoModel.from_pretrained(backbones["vision"]).state_dict()
    language = AutoModelForCausalLM.from_pretrained(backbones["language"]).state_dict()
    others = [name for name in found if name not in stored and name != "recipe_bytes"]
    assert len(others) > 20
    for name in others:
        bare = name.replace("base_model.model.", "").replace(".base_layer", "")
        source = tower if name.startswith(PREFIXES[0]) else language
        origin = source[bare.removeprefix(PREFIXES[0]).removeprefix(PREFIXES[1])]
        assert torch.equal(found[name], origin)
    assert loaded.resolution is not None
    notes = " ".join(loaded.resolution.notes)
    assert notes.count("their digest is the recorded one") == 2


def test_both_copies_of_the_document_have_the_references(folders: dict[str, Path]) -> None:
    folder = folders["finetune"]
    document = json.loads((folder / "checkpoint_metadata.json").read_text())
    assert set(document["references"]) == set(PREFIXES)
    found = resolve(folder)
    assert found.assumed == [] and found.conflicts == []
    (folder / "checkpoint_metadata.json").rename(folder / "away.json")
    try:
        assert resolve(folder).borrowed == found.borrowed
    finally:
        (folder / "away.json").rename(folder / "checkpoint_metadata.json")


def test_a_moved_backbone_is_named(
    folders: dict[str, Path], backbones: dict[str, Path], tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(backbones["vision"], moved)
    away = backbones["vision"].with_name("away")
    backbones["vision"].rename(away)
    try:
        with pytest.raises(CheckpointError, match=r"vision tower to .*recorded in the metadata"):
            PanoramaVLM.from_checkpoint(folders["finetune"])
        loaded = PanoramaVLM.from_checkpoint(
            folders["finetune"], overrides={"models.vision_name": str(moved)}
        )
        assert loaded.recipe.models.vision_name == str(moved)
    finally:
        away.rename(backbones["vision"])


def test_a_changed_backbone_is_refused(
    folders: dict[str, Path], backbones: dict[str, Path], tmp_path: Path
) -> None:
    changed = tmp_path / "lm"
    shutil.copytree(backbones["language"], changed)
    model = AutoModelForCausalLM.from_pretrained(changed)
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-6
    model.save_pretrained(changed)
    with pytest.raises(ContradictionError, match="other weights of the language model"):
        PanoramaVLM.from_checkpoint(
            folders["finetune"], overrides={"models.language_model_name": str(changed)}
        )


def test_an_interrupted_stage_goes_on_from_it(settings_of: Any, tmp_path: Path) -> None:
    """The second half of a stage ends with the very weights of an uninterrupted one."""
    only = ("training.stages=[vision]", "training.stage_configs.vision.epochs={}")
    whole = quietly(settings_of(tmp_path / "whole", only[0], only[1].format(2)))
    expected = weights(whole / LAST)
    settings = settings_of(tmp_path / "half", only[0], only[1].format(2))
    half = _interrupted(settings)
    assert len(weights(half / LAST)) == len(expected)
    quietly(settings, resume=True)
    found = weights(half / LAST)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def _interrupted(settings: Any) -> Path:
    """Stop a run in its second epoch, after a ``last.ckpt`` was written."""
    from panovlm.training.checkpoints import CheckpointWriter

    write, written = CheckpointWriter._write_last, []

    def once(self: CheckpointWriter, trainer: Any) -> None:
        write(self, trainer)
        written.append(self.folder)
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    CheckpointWriter._write_last = once  # type: ignore[method-assign]
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            quietly(settings)
    finally:
        CheckpointWriter._write_last = write  # type: ignore[method-assign]
    return written[-1]


class TestRefused:
    def test_backbones_without_a_name(self, make_settings: Any, tmp_path: Path) -> None:
        settings = make_settings(tmp_path, "training.save=trainable", "training.stages=[vision]")
        with pytest.raises(ConfigError, match=r"cannot be left to 'small-siglip'.*to 'all'"):
            quietly(settings)

    def test_weights_of_another_type(self, settings_of: Any, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="bf16-true"):
            settings_of(tmp_path, "environment.precision=bf16-true")


def test_a_given_checkpoint_of_two_copies_is_chosen_from(
    folders: dict[str, Path], settings_of: Any, tmp_path: Path
) -> None:
    """The run starts from the average, and says what it knows about the file."""
    contents = torch.load(folders["vision"] / BEST, weights_only=True)
    name = "model.projector.linear.weight"
    average = {**contents["state_dict"], name: contents["state_dict"][name] + 1}
    torch.save({**contents, "state_dict_ema": average}, tmp_path / "two.ckpt")
    only = ["training.stages=[vision]", "training.stage_configs.vision.epochs=1"]
    given = f"paths.pretrained_dir={tmp_path / 'two.ckpt'}"
    with pytest.raises(CheckpointError, match="two ways"):
        quietly(settings_of(tmp_path / "runs", *only, given))
    told = io.StringIO()
    settings = settings_of(tmp_path / "runs", *only, given, "paths.pretrained_weights=ema")
    folder = train(settings, console=Console(file=told))
    assert torch.equal(weights(folder / LAST)["projector.linear.weight"], average[name])
    assert "stage vision: these are averaged weights (EMA)" in told.getvalue()
