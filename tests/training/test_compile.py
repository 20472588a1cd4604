"""Training with compiled layers: the same names, numbers and checkpoints."""

from __future__ import annotations

import csv
import io
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from rich.console import Console
from tests.training.conftest import MakeSettings
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from panovlm.checkpoint.loading.load import load_checkpoint
from panovlm.checkpoint.probe.measure import take_probe
from panovlm.config.schema import Settings
from panovlm.errors import ConfigError
from panovlm.models.compilation import check_compiler, compile_layers, uncompiled
from panovlm.models.model import PanoramaVLM
from panovlm.training.run import train
from panovlm.training.rundir import LAST
from panovlm.training.stage import stage_model
from panovlm.training.tables import Tables

ONE_STAGE = (
    "training.stages=[finetune]",
    "models.vision_config.attention_dropout=0",
    "models.resampler_config.dropout=0",
    "lora.dropout=0",
    "data.csv_val=[]",
    "training.augment=false",
    "training.stage_configs.finetune.epochs=3",
)


@pytest.fixture
def model(make_settings: MakeSettings) -> PanoramaVLM:
    settings = make_settings(Path("unused"), *ONE_STAGE)
    torch.manual_seed(0)
    return stage_model(settings, "finetune", Tables(settings), None)


def graphs() -> int:
    """Return how many graphs torch has compiled."""
    return counters["stats"]["unique_graphs"]


def compiled(model: nn.Module) -> set[str]:
    return {name for name, m in model.named_modules() if cast(Any, m)._compiled_call_impl}


def names_in(file: Path) -> list[str]:
    return list(torch.load(file, weights_only=True)["state_dict"])


def losses(settings: Settings) -> list[float]:
    folder = train(settings, console=Console(file=io.StringIO()))
    (file,) = folder.glob("logs/csv/*/metrics.csv")
    with file.open() as lines:
        return [float(row["train_loss"]) for row in csv.DictReader(lines) if row["train_loss"]]


def test_a_compiled_run_learns_the_same_and_loads(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    expected = losses(make_settings(tmp_path / "plain", *ONE_STAGE))
    before = graphs()
    found = losses(make_settings(tmp_path / "compiled", *ONE_STAGE, "environment.compile=true"))
    assert graphs() >= before + 2  # those of the tower and of the language model
    assert len(found) > 2
    assert found == pytest.approx(expected, rel=1e-4)
    plain, quick = (next((tmp_path / name).rglob(LAST)) for name in ("plain", "compiled"))
    assert names_in(plain) == names_in(quick)
    # Its probe was not taken of compiled layers.
    load_checkpoint(quick, device=torch.device("cpu"), strict=True)


def test_the_gradients_are_the_same(model: PanoramaVLM) -> None:
    words = torch.tensor([[5, 6, 7, 8]])
    batch = {"pixel_values": torch.randn(1, 9, 3, 16, 16), "input_ids": words, "labels": words}

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(**batch).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    compile_layers(model)
    found = gradients()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_layers_of_both_backbones_are_compiled(model: PanoramaVLM) -> None:
    names = list(model.state_dict())
    assert compile_layers(model) == {"SiglipEncoderLayer": 2, "Qwen3DecoderLayer": 1}
    assert list(model.state_dict()) == names
    assert {name.rsplit(".", 2)[-2] for name in compiled(model)} == {"layers"}
    assert len(compiled(model)) == 3


def test_a_probe_is_taken_uncompiled(model: PanoramaVLM) -> None:
    expected = take_probe(model)
    compile_layers(model)
    before = graphs()
    assert take_probe(model) == expected
    with uncompiled(model), torch.no_grad():
        model.vision_features(torch.zeros(1, 3, 16, 16))
    assert graphs() == before
    assert len(compiled(model)) == 3


def test_a_model_without_lists_of_layers_is_refused() -> None:
    model = nn.Module()
    model.vision_backbone = nn.Module()
    model.vision_backbone.encoder = nn.Linear(2, 2)
    model.language_model = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"environment\.compile is true, but no backbone"):
        compile_layers(model)


def compiler(folder: Path, script: str) -> str:
    """Write a C++ compiler that knows its version, and does something else than to compile."""
    file = folder / "compiler"
    file.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec g++ --version\n{script}\n')
    file.chmod(0o755)
    return str(file)


class TestWithoutACompiler:
    @pytest.fixture(autouse=True)
    def _no_compiler(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Generator[None]:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "empty"))
        torch.compiler.reset()
        with inductor.patch({"cpp.cxx": ("no-such-compiler",)}):
            yield

    def test_it_is_said_at_once(self) -> None:
        with pytest.raises(ConfigError, match=r"cannot compile here: .*g\+\+ or clang"):
            check_compiler(torch.device("cpu"))

    def test_no_run_begins(self, make_settings: MakeSettings, tmp_path: Path) -> None:
        settings = make_settings(tmp_path, *ONE_STAGE, "environment.compile=true")
        with pytest.raises(ConfigError, match=r"environment\.compile is true, but torch cannot"):
            train(settings, console=Console(file=io.StringIO()))
        assert not list(tmp_path.rglob("finetune"))

    def test_it_fails_later(
        self, make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As where the small program of the check lies in torch's cache."""
        monkeypatch.setattr("panovlm.training.stage.check_compiler", lambda _device: None)
        settings = make_settings(tmp_path, *ONE_STAGE, "environment.compile=true")
        with pytest.raises(ConfigError, match=r"environment\.compile is true, but torch cannot"):
            train(settings, console=Console(file=io.StringIO()))

    def test_what_the_compiler_said_is_told(self, tmp_path: Path) -> None:
        script = "echo 'x.cpp:1: note: seen'; echo 'x.cpp:2: fatal error: no header'; exit 1"
        patched = inductor.patch({"cpp.cxx": (compiler(tmp_path, script),)})
        with patched, pytest.raises(ConfigError) as caught:
            check_compiler(torch.device("cpu"))
        assert "cannot compile here: x.cpp:2: fatal error: no header. It needs" in str(caught.value)

    def test_no_folder_to_write_to(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file"))
        with pytest.raises(ConfigError, match=r"cannot compile here: .*exists.*INDUCTOR_CACHE_DIR"):
            check_compiler(torch.device("cpu"))

    def test_a_job_that_is_ended_while_it_compiles(
        self, make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The signal reaches the C++ compiler as well, and its end is noticed first."""
        monkeypatch.setattr("panovlm.training.stage.check_compiler", lambda _device: None)
        settings = make_settings(tmp_path, *ONE_STAGE, "environment.compile=true")
        said = io.StringIO()
        patched = inductor.patch({"cpp.cxx": (compiler(tmp_path, "kill -TERM $PPID; exit 1"),)})
        with patched, pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
            train(settings, console=Console(file=said))
        assert "stopped at step 0; nothing was saved yet" in said.getvalue()
