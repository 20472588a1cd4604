"""What each stage trains, and what it leaves alone: one run of all three."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from rich.console import Console

from panovlm.models.model import PanoramaVLM
from panovlm.training.run import train
from panovlm.training.rundir import BEST, LAST
from panovlm.training.stage import stage_model
from panovlm.training.tables import Tables

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folders(make_settings: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    settings = make_settings(tmp_path_factory.mktemp("runs"))
    last = train(settings, console=Console(file=io.StringIO()))
    experiment = last.parents[1]
    return {path.name: path / last.name for path in experiment.iterdir()}


@pytest.fixture(scope="module")
def initial(make_settings: Any) -> State:
    """The weights that the first stage began with."""
    settings = make_settings(Path("unused"))
    lightning.seed_everything(settings.environment.seed, verbose=False)
    model = stage_model(settings, "vision", Tables(settings), None)
    state = model.state_dict()
    return {name: state[name].clone() for name in state if name != "recipe_bytes"}


def weights(file: Path) -> State:
    state = torch.load(file, weights_only=True)["state_dict"]
    del state["model.recipe_bytes"]
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


def changed(before: State, after: State) -> set[str]:
    """Names of parts of which at least one tensor is another than before."""
    assert before.keys() == after.keys()
    return {part(n) for n in before if not torch.equal(before[n], after[n])}


def part(name: str) -> str:
    steps = name.split(".")
    if "layers" in steps and steps[0] == "vision_backbone":
        return f"vision block {steps[steps.index('layers') + 1]}"
    return steps[0]


def test_vision(folders: dict[str, Path], initial: State) -> None:
    """The small experiment trains the last of the tower's two blocks in this stage."""
    after = weights(folders["vision"] / LAST)
    parts = {"vision block 1", "resampler_module", "vicreg_projector"}
    assert changed(initial, after) == parts


def test_resampler(folders: dict[str, Path]) -> None:
    before, after = weights(folders["vision"] / BEST), weights(folders["resampler"] / LAST)
    assert changed(before, after) == {"resampler_module", "projector", "language_model"}


def test_finetune_moves_the_adapters_and_not_what_they_adapt(folders: dict[str, Path]) -> None:
    before, after = weights(folders["resampler"] / BEST), weights(folders["finetune"] / LAST)
    adapters = {name: tensor for name, tensor in after.items() if "lora_" in name}
    plain = {
        name.replace("language_model.base_model.model.", "language_model.").replace(
            ".base_layer.", "."
        ): tensor
        for name, tensor in after.items()
        if name not in adapters
    }
    assert changed(before, plain) == {"resampler_module", "projector"}
    ups = {name: tensor for name, tensor in adapters.items() if "lora_B" in name}
    assert len(ups) == len(adapters) / 2 == 2
    for name, tensor in ups.items():
        assert tensor.abs().max() > 0, f"{name} was never trained"


def test_the_adapters_have_an_effect(folders: dict[str, Path]) -> None:
    model = PanoramaVLM.from_checkpoint(folders["finetune"], strict=True)
    ids = torch.tensor([[5, 6, 7, 8]])
    tokens = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        adapted = model(input_ids=ids, vision_tokens=tokens).logits
        with model.language_model.disable_adapter():  # type: ignore[operator]
            bare = model(input_ids=ids, vision_tokens=tokens).logits
    assert (adapted - bare).abs().max() > 0


def test_every_stage_writes_what_its_readers_need(folders: dict[str, Path]) -> None:
    for stage, folder in folders.items():
        metadata = json.loads((folder / "checkpoint_metadata.json").read_text())
        assert metadata["stage"] == stage
        assert metadata["experiment_name"] == "small"
        assert metadata["training"]["data"]["train_rows"] == 16
        upstream = metadata["training"]["upstream_checkpoint"]
        order = ["vision", "resampler", "finetune"]
        before = order[order.index(stage) - 1]
        assert upstream == (None if stage == "vision" else str(folders[before]))
        assert (folder / "tokenizer" / "tokenizer.json").is_file()
        assert metadata["recipe"]["lora"]["use_lora"] == (stage == "finetune")
        with (folder / "logs" / "csv" / "version_0" / "metrics.csv").open() as file:
            losses = [row["val_loss"] for row in csv.DictReader(file) if row["val_loss"]]
        assert losses
        best = next(folder.glob("small_bimamba_anyres_e2p_train_epoch*.ckpt"))
        assert best.name.endswith(f"_loss{min(map(float, losses)):.4f}.ckpt")


def test_losses_are_logged_however_short_a_stage_is(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        with next(folder.glob("logs/csv/version_0/metrics.csv")).open() as file:
            rows = list(csv.DictReader(file))
        for name in ("train_loss", "val_loss"):
            assert any(float(row[name]) > 0 for row in rows if row[name]), (folder, name)
        assert list(folder.glob("logs/tensorboard/events.out.tfevents.*"))


def test_the_config_beside_a_checkpoint_is_the_file(
    make_settings: Any, small_file: Path, tmp_path: Path
) -> None:
    one_epoch = "training.stage_configs.vision.epochs=1"
    settings = make_settings(tmp_path, "training.stages=[vision]", one_epoch)
    quiet = Console(file=io.StringIO())
    folder = train(settings, config_file=small_file, console=quiet)
    assert (folder / "config.yaml").read_bytes() == small_file.read_bytes()
    folder = train(settings, config_file=small_file, config_text=b"other: 1\n", console=quiet)
    assert (folder / "config.yaml").read_bytes() == b"other: 1\n"
