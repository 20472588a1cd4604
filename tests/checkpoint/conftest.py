"""The original system's model and files, and DeepSpeed's, for the tests of this folder.

Tests have no package, so that these modules are loaded from their files.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

STAGES = ("vision", "resampler", "finetune")
TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "image_size": 16,
    "patch_size": 4,
}
QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
}
OWN = {
    "vision_config": TOWER,
    "resampler_type": "mlp",
    "resampler_config": {"hidden_dim": 48},
    "latent_dimension": 40,
    "vicreg_projector_dim": 20,
    "vicreg_projector_hidden": 24,
}
"""A model whose every unobservable setting is the default: its weights alone tell it."""


HERE = Path(__file__).parent
BENCHMARKS = HERE.parent.parent / "benchmarks"


def _module(name: str, folder: Path = HERE) -> ModuleType:
    full = f"panovlm_tests_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, folder / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


@pytest.fixture(scope="session")
def original() -> ModuleType:
    """Independent implementation of the original system's model."""
    return _module("original")


@pytest.fixture(scope="session")
def files() -> ModuleType:
    """Writers of the original system's files."""
    return _module("original_files")


@pytest.fixture(scope="session")
def zero() -> ModuleType:
    """Writer of DeepSpeed's folders."""
    return _module("zero_writer", BENCHMARKS)


@pytest.fixture(scope="session")
def small() -> ModuleType:
    """Maker of a small untrained model."""
    return _module("small_model", BENCHMARKS)


@pytest.fixture(scope="session")
def dcp_writer() -> ModuleType:
    """Writer of distributed checkpoints."""
    return _module("dcp_writer")


@pytest.fixture(scope="session")
def backbones(files, tmp_path_factory):
    """Tiny backbones on disk, as ``vision`` and ``language`` folders by short name."""
    return files.write_backbones(tmp_path_factory.mktemp("backbones"))


@pytest.fixture(scope="session")
def build(original, backbones):
    """Build an original model; equal specifications give the same object."""
    built = {}

    def of(**settings):
        key = repr(sorted(settings.items()))
        if key not in built:
            built[key] = original.build(original.Spec(**settings), backbones)
        return built[key]

    return of


@pytest.fixture
def write(files, backbones, tmp_path):
    """Write a run folder of the original system in ``tmp_path``; see ``files.write_run``."""

    def run(model, **options):
        return files.write_run(tmp_path, model, backbones, **options)

    return run


@pytest.fixture(scope="session")
def own():
    """Build an untrained model of today's layout; equal settings give the same object."""
    import torch

    from panovlm.config.schema import Settings
    from panovlm.models.assemble import new_model

    built = {}

    def of(*, image=None, language=None, **models):
        key = repr((image, language, sorted(models.items())))
        if key not in built:
            torch.manual_seed(7)
            settings = Settings.model_validate(
                {
                    "models": {**OWN, "language_config": {**QWEN3, **(language or {})}, **models},
                    "image_processing": image or {},
                    "training": {"stage_configs": {s: {} for s in STAGES}},
                }
            )
            built[key] = new_model(settings, ["what is left of the red ball ?"]).eval()
            with torch.no_grad():
                for parameter in built[key].parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
        return built[key]

    return of
