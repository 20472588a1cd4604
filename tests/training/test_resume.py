"""A run that was stopped anywhere and continued ends as if it had never been stopped."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import panovlm.training.stage
from panovlm.checkpoint.loading.load import build_empty, prove_model
from panovlm.checkpoint.resolve import resolve
from panovlm.config.schema import Settings
from panovlm.errors import CheckpointError, ConfigError
from panovlm.training.progress import ProgressLines
from panovlm.training.run import train
from panovlm.training.rundir import BEST, LAST, stage_folder
from panovlm.training.state import StateFile

ALONE = "training.stages=[resampler]"
"""Six batches of an epoch, gradients of two accumulated, last.ckpt after every step."""
STAGE = "training.stage_configs.resampler"


class StoppedError(Exception):
    """The process was killed, as far as a test in the same process can tell."""


def stop_at(monkeypatch: pytest.MonkeyPatch, hook: str, count: int) -> None:
    """Break training off when a hook is called for that time, before checkpoints are written."""
    calls: list[int] = []

    def hit(*_: object) -> None:
        calls.append(1)
        if len(calls) == count:
            raise StoppedError

    stopping = type("Stopping", (ProgressLines,), {hook: hit})
    monkeypatch.setattr(panovlm.training.stage, "ProgressLines", stopping)


def run(settings: Settings, **options: Any) -> tuple[Path, str]:
    """Train; return the folder and what was said."""
    said = io.StringIO()
    folder = train(settings, console=Console(file=said, width=200), **options)
    return folder, said.getvalue()


def read(file: Path) -> dict[str, Any]:
    return torch.load(file, weights_only=True)


def same(one: Any, other: Any) -> bool:
    """Compare nested containers, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def assert_loads(folder: Path) -> None:
    """Every file that a reader would pick up opens, and is the model that it says it is."""
    files = [path for path in folder.rglob("*.ckpt") if not path.name.startswith(".")]
    assert files
    for file in files:
        resolution = resolve(file)
        assert not resolution.conflicts and not resolution.assumed
        prove_model(resolution, build_empty(resolution.config)).raise_failure(file)


@pytest.fixture(scope="module")
def wholes(make_settings: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The stage's folder after runs that nothing stopped, by interval of the validations."""
    return {
        interval: run(
            make_settings(
                tmp_path_factory.mktemp("whole"), ALONE, f"{STAGE}.val_check_interval={interval}"
            )
        )[0]
        for interval in (2, 3)
    }


@pytest.mark.parametrize(
    ("interval", "hook", "count"),
    [
        (3, "on_train_batch_start", 2),  # between two batches of one step, nothing written yet
        (3, "on_train_batch_start", 4),  # after a validation between two batches of one step
        (3, "on_train_batch_start", 6),  # in the middle of an epoch, between two batches
        (3, "on_validation_end", 2),  # end of the first epoch, before its best is kept
        (3, "on_train_epoch_end", 1),  # its best is kept, last.ckpt a step behind
        (3, "on_train_batch_start", 7),  # before the second epoch
        (3, "on_train_batch_start", 11),
        (3, "on_train_epoch_end", 2),
        (2, "on_validation_start", 1),  # the first step is done, its validation is not
        (2, "on_validation_start", 2),
        (2, "on_validation_end", 2),
        (2, "on_train_batch_start", 5),  # after a validation in the middle of an epoch
        (2, "on_validation_start", 5),
    ],
)
def test_stopped_anywhere(
    interval: int,
    hook: str,
    count: int,
    wholes: dict[int, Path],
    make_settings: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = wholes[interval]
    settings = make_settings(tmp_path, ALONE, f"{STAGE}.val_check_interval={interval}")
    with monkeypatch.context() as patch:
        stop_at(patch, hook, count)
        with pytest.raises(StoppedError):
            run(settings)
    had_last = (stage_folder(settings, "resampler") / LAST).is_file()
    folder, said = run(settings, resume=True)
    assert ("continues from" in said) == had_last
    assert ("no earlier run" in said) != had_last
    found, expected = read(folder / LAST), read(whole / LAST)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step"):
        assert same(found[part], expected[part]), part
    assert same(read(folder / BEST)["state_dict"], read(whole / BEST)["state_dict"])
    # The name of the best file tells epoch and loss; one such file is kept.
    assert files(folder) == files(whole)
    assert_loads(folder)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.ckpt"))


def test_the_best_of_before_is_remembered(
    make_settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later epoch that is no better does not become the best because of an interruption."""
    settings = make_settings(tmp_path, ALONE, f"{STAGE}.lr=1e-12")
    with monkeypatch.context() as patch:
        stop_at(patch, "on_train_batch_start", 7)
        with pytest.raises(StoppedError):
            run(settings)
    folder = stage_folder(settings, "resampler")
    (best,) = folder.glob("*_epoch00_loss*.ckpt")
    run(settings, resume=True)
    assert files(folder) == ["best.ckpt", "last.ckpt", best.name]
    assert best.samefile(folder / BEST)


def test_a_validation_that_was_due_is_not_left_out(
    make_settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after a step, while the validation that follows it was running."""
    settings = make_settings(tmp_path, ALONE, f"{STAGE}.lr=1e-12", f"{STAGE}.val_check_interval=2")
    with monkeypatch.context() as patch:
        stop_at(patch, "on_validation_start", 1)
        with pytest.raises(StoppedError):
            run(settings)
    folder, _ = run(settings, resume=True)
    assert read(folder / BEST)["global_step"] == 1


def test_the_run_that_was_not_stopped(wholes: dict[int, Path]) -> None:
    """What the comparisons above rest on."""
    whole = wholes[3]
    state = read(whole / LAST)
    assert state["global_step"] == 6
    assert state["lr_schedulers"][0]["last_epoch"] == 6
    assert len(list(whole.glob("small_*_epoch*_loss*.ckpt"))) == 1
    best = next(whole.glob("small_*_epoch*_loss*.ckpt"))
    assert f"loss{state['callbacks']['CheckpointWriter']['best_loss']:.4f}" in best.name
    assert best.samefile(whole / BEST)


def test_a_stage_that_stopped_early_is_not_trained_further(
    make_settings: Any, tmp_path: Path
) -> None:
    """Killed between its last checkpoint and the note that it is complete."""
    changes = [f"{STAGE}.{change}" for change in ("lr=1e-12", "patience=1", "epochs=9")]
    settings = make_settings(tmp_path, ALONE, *changes)
    folder, _ = run(settings)
    first = read(folder / LAST)
    assert first["epoch"] < 8
    StateFile(settings).begin("resampler", folder)
    run(settings, resume=True)
    assert same(read(folder / LAST)["state_dict"], first["state_dict"])
    assert read(folder / LAST)["global_step"] == first["global_step"]
    assert StateFile(settings).read().is_completed("resampler")


class TestWhatResumeSays:
    @pytest.fixture
    def done(self, make_settings: Any, tmp_path: Path) -> Settings:
        settings = make_settings(
            tmp_path, "training.stages=[vision]", "training.stage_configs.vision.epochs=1"
        )
        run(settings)
        return settings

    def test_nothing_to_do(self, done: Settings) -> None:
        before = {p: p.stat().st_mtime_ns for p in Path(done.paths.runs_dir).rglob("*")}
        folder, said = run(done, resume=True)
        assert said == "nothing to do: vision complete\n"
        assert folder == stage_folder(done, "vision")
        assert {p: p.stat().st_mtime_ns for p in Path(done.paths.runs_dir).rglob("*")} == before

    def test_a_complete_stage_whose_checkpoint_is_gone(self, done: Settings) -> None:
        for file in stage_folder(done, "vision").glob("*.ckpt"):
            file.unlink()
        with pytest.raises(CheckpointError, match="holds no checkpoint; restore it, or train"):
            run(done, resume=True)

    def test_other_settings_are_refused(self, done: Settings, make_settings: Any) -> None:
        StateFile(done).begin("vision", stage_folder(done, "vision"))
        changed = make_settings(
            Path(done.paths.runs_dir),
            "training.stages=[vision]",
            "training.stage_configs.vision.epochs=1",
            "training.stage_configs.vision.lr=0.5",
            "models.overlap_ratio=0.25",
            "training.stage_configs.vision.trainable={vision_blocks: 2}",
        )
        with pytest.raises(ConfigError) as error:
            run(changed, resume=True)
        assert "models.overlap_ratio: was 0.5, is 0.25" in str(error.value)
        assert "training.stage_configs.vision.lr: was 0.001, is 0.5" in str(error.value)
        assert "stage_configs.vision.trainable.vision_blocks: was 1, is 2" in str(error.value)

    def test_pictures_that_are_read_otherwise_are_refused(
        self, done: Settings, make_settings: Any
    ) -> None:
        StateFile(done).begin("vision", stage_folder(done, "vision"))
        changed = make_settings(
            Path(done.paths.runs_dir),
            "training.stages=[vision]",
            "training.stage_configs.vision.epochs=1",
            "data.input={hfov: 180, vfov: 90, pitch: 10}",
        )
        with pytest.raises(ConfigError) as error:
            run(changed, resume=True)
        assert "data.input.hfov: was None, is 180.0" in str(error.value)
        assert "data.input.pitch: was 0.0, is 10.0" in str(error.value)
        assert "data.input.layout" not in str(error.value)

    def test_a_second_run_keeps_the_first(self, done: Settings) -> None:
        folder = stage_folder(done, "vision")
        first = (folder / LAST).read_bytes()
        _, said = run(done)
        aside = Path(done.paths.runs_dir) / "small.1"
        assert f"earlier run moved to {aside}\n" in said
        moved = aside / folder.relative_to(Path(done.paths.runs_dir) / "small")
        assert (moved / LAST).read_bytes() == first
        assert (folder / BEST).is_file()
        assert_loads(Path(done.paths.runs_dir))
        StateFile(done).begin("vision", folder)
        _, said = run(done)
        assert "small.2 (it was interrupted; --resume would have continued it)\n" in said

    def test_a_fresh_run_that_cannot_begin_leaves_the_first(
        self, done: Settings, make_settings: Any
    ) -> None:
        broken = make_settings(
            Path(done.paths.runs_dir),
            "training.stages=[vision]",
            "training.stage_configs.vision.trainable={vision_blocks: 9}",
        )
        with pytest.raises(ConfigError, match=r"vision_blocks is 9, but the tower has 2 blocks"):
            run(broken)
        assert (stage_folder(done, "vision") / BEST).is_file()
        assert StateFile(done).read().is_completed("vision")
