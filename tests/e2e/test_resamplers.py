"""Every resampler from YAML: trained, saved, proved, probed, evaluated, known by its weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from panovlm.checkpoint.fields import RESAMPLER, bears, flatten
from panovlm.checkpoint.loading.load import assemble
from panovlm.checkpoint.probe.check import check_probe
from panovlm.checkpoint.probe.measure import precisions
from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.saving.save import strip_metadata
from panovlm.cli.main import main
from panovlm.models.model import PanoramaVLM
from panovlm.models.resamplers import recipe, recipes

Capture = pytest.CaptureFixture[str]

# Views of 4 x 4 patches; every setting that leaves no trace has another value than usual.
SETTINGS = {
    "mlp": "{hidden_dim: 12, depth: 2}",
    "bimamba": "{hidden_dim: 12, depth: 1, cross_view: true, norm_first: false, directions: sum}",
    "qformer": "{num_query_tokens: 4, num_hidden_layers: 1, num_attention_heads: 2}",
    "perceiver": "{num_latents: 6, hidden_dim: 24, depth: 1, num_attention_heads: 2, dropout: 0.1}",
    "conv": "{hidden_dim: 12, depth: 2, drop_path: 0.1}",
    "c_abstractor": "{hidden_dim: 12, depth: 1, rows: 2, columns: 3}",
    "identity": "{}",
    "avg_pool": "{window: 2}",
    "spatial_pool": "{rows: 1, columns: 4, mode: max}",
    "masked_drop": "{rate: 0.5}",
}
TOKENS = {
    "qformer": (2, 2),
    "perceiver": (2, 3),
    "conv": (2, 2),
    "c_abstractor": (2, 3),
    "avg_pool": (2, 2),
    "spatial_pool": (1, 4),
}
"""Rows and columns of the tokens of a view, where they are not those of its patches."""


def test_every_resampler_is_tried_here() -> None:
    assert set(SETTINGS) == set(recipes())


@pytest.fixture(scope="module", params=sorted(SETTINGS))
def trained(
    request: pytest.FixtureRequest, experiment: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """The architecture, and the run folder of two steps on the overlap loss and one on answers."""
    runs = tmp_path_factory.mktemp(request.param)
    changes = (
        f"paths.runs_dir={runs}",
        f"models.resampler_type={request.param}",
        f"models.resampler_config={SETTINGS[request.param]}",
        "models.vision_config.image_size=32",
        "image_processing.image_size=32",
        "training.stages=[vision, finetune]",
        "training.stage_configs.vision.epochs=1",
        "training.stage_configs.vision.batch_size=4",
        "training.stage_configs.finetune.batch_size=4",
        "training.stage_configs.finetune.accumulate_grad_batches=1",
    )
    assert main(["train", "--config", str(experiment / "small.yaml"), *changes]) == 0
    (folder,) = (runs / "small" / "finetune").iterdir()
    return request.param, folder


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(2, 5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_it_loads_as_it_was_trained_and_answers(
    trained: tuple[str, Path], experiment: Path, tmp_path: Path, capsys: Capture
) -> None:
    name, folder = trained
    steps = torch.load(folder / "last.ckpt", weights_only=True)["global_step"]
    assert steps == 2
    assert main(["inspect", str(folder)]) == 0
    assert capsys.readouterr().out.endswith("verdict: loads, and every setting is known\n")
    model = PanoramaVLM.from_checkpoint(folder, strict=True)  # compares the probe, too
    models = model.recipe.models
    assert models.resampler_type == name
    assert main(["eval", "--checkpoint-dir", str(folder), "--output-dir", str(tmp_path)]) == 0
    assert "6 of 6 samples scored, 0 failed" in capsys.readouterr().out


def test_the_strip_is_as_long_as_its_grid_says(
    trained: tuple[str, Path], pixels: torch.Tensor
) -> None:
    name, folder = trained
    model = PanoramaVLM.from_checkpoint(folder)
    rows, columns = TOKENS.get(name, (4, 4))
    with torch.no_grad():
        assert model.resampled_features(pixels).shape == (10, rows * columns, 16)
        found = model.vision_tokens(pixels).shape[1]
    kept = columns - columns // 2 if columns != 3 else 1  # 1.5 columns are rounded to two
    # One whole view in front, then the first tile, then what the later ones have of their own.
    assert found == rows * columns + rows * (columns + 3 * kept)


def test_weights_alone_tell_it(
    trained: tuple[str, Path], pixels: torch.Tensor, tmp_path: Path, capsys: Capture
) -> None:
    name, folder = trained
    strip_metadata(folder / "best.ckpt", tmp_path / "best.ckpt")
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    bare = resolve(tmp_path)
    whole = PanoramaVLM.from_checkpoint(folder)
    architecture, config = recipe(name), whole.recipe.models.resampler_config
    assert bare.config.models.resampler_type == name
    stated = {}
    for field, how in architecture.observability.items():
        full = f"{RESAMPLER}.{field}"
        source = bare.sources[full]
        if how == "observable":
            assert source.kind == "weights"
            told = flatten(bare.config)[full]
            assert told == getattr(config, field)
        else:
            assert source.kind == "default"
            assert (full in bare.assumed) == bears(full, flatten(bare.config))
            stated[full] = getattr(config, field)
    known = {"lora.alpha": 4, **stated}
    loaded = PanoramaVLM.from_checkpoint(tmp_path, overrides=known)
    assert loaded.recipe.models.resampler_config == config
    with torch.no_grad():
        assert torch.equal(loaded.vision_tokens(pixels), whole.vision_tokens(pixels))


def test_the_probe_sees_every_setting_that_counts(trained: tuple[str, Path]) -> None:
    """A wrong value that no shape shows is found out when the checkpoint is loaded."""
    name, folder = trained
    architecture = recipe(name)
    config = PanoramaVLM.from_checkpoint(folder).recipe.models.resampler_config
    for field, how in architecture.observability.items():
        if how == "observable" or field in architecture.training_only:
            continue
        if (name, field) == ("qformer", "num_attention_heads"):
            continue  # its attention starts so flat that heads show after more training only
        usual = getattr(architecture.settings(), field)
        assert usual != getattr(config, field)
        resolution = resolve(folder, {f"{RESAMPLER}.{field}": usual})
        model = assemble(resolution)
        report = check_probe(model, resolution, precisions(model))
        assert list(report.differences) == ["resampler"], field
