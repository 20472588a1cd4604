"""Names of experiments, folders and files; those of the original system where it had them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from panovlm.config.schema import Settings
from panovlm.training.rundir import (
    checkpoint_name,
    checkpoint_stem,
    experiment_name,
    move_aside,
    stage_folder,
)


def settings(**blocks: Any) -> Settings:
    training = {"stages": ["vision"], "stage_configs": {"vision": {}}, **blocks.pop("training", {})}
    return Settings.model_validate({"training": training, **blocks})


NAMES = {
    "vision_name": "google/siglip-base-patch16-224",
    "language_model_name": "Qwen/Qwen2.5-0.5B-Instruct",
    "resampler_type": "bidirectional_mamba",
}
MADE_UP = "SIGLIP-BASE_QWEN25_BIMAMBA_E2P_PE"


@pytest.mark.parametrize(
    ("experiment", "prefix", "expected"),
    [
        ({"name": "mine"}, "", "mine"),
        ({"name": "mine"}, "other", "mine"),
        ({"name": "mine", "auto_name": True}, "other", "other"),
        ({"name": "mine", "auto_name": True}, "", MADE_UP),
        ({"name": ""}, "other", "other"),
        ({"name": "auto"}, "", MADE_UP),
        ({"name": "{auto}"}, "", MADE_UP),
        ({}, "", MADE_UP),
    ],
)
def test_which_name_counts(experiment: dict[str, Any], prefix: str, expected: str) -> None:
    found = settings(
        experiment=experiment,
        models=NAMES,
        image_processing={"crop_strategy": "e2p"},
        training={"prefix": prefix},
    )
    assert experiment_name(found) == expected


@pytest.mark.parametrize(
    ("models", "crop", "expected"),
    [
        (NAMES, "anyres_e2p", "SIGLIP-BASE_QWEN25_BIMAMBA_ANYRES_E2P_PE"),
        (
            {**NAMES, "use_projection_positional_encoding": False, "resampler_type": "mlp"},
            "e2p",
            "SIGLIP-BASE_QWEN25_MLP_E2P",
        ),
        (
            {
                "vision_name": "/models/dinov2-large/",
                "language_model_name": "meta-llama/Llama-3.2-1B",
                "resampler_type": "qformer",
            },
            "cubemap",
            "DINOV2_LLAMA_QFORMER_CUBEMAP_PE",
        ),
        ({**NAMES, "vision_name": "siglip2"}, "resize", "SIGLIP2_QWEN25_BIMAMBA_RESIZE_PE"),
    ],
)
def test_made_up_names(models: dict[str, Any], crop: str, expected: str) -> None:
    found = settings(models=models, image_processing={"crop_strategy": crop})
    assert experiment_name(found) == expected


def test_stage_folder() -> None:
    found = settings(
        experiment={"name": "x"},
        models=NAMES,
        image_processing={"crop_strategy": "anyres_e2p"},
        paths={"runs_dir": "/data/runs"},
    )
    assert stage_folder(found, "vision") == Path("/data/runs/x/vision/anyres-e2p_bimamba")


@pytest.mark.parametrize(
    ("tower", "tables", "expected"),
    [
        ("google/siglip-base-patch16-224", ["a/quic.csv"], "siglip_bimamba_e2p_quic"),
        ("google/siglip2-so400m", ["a/q.csv", "b.csv", "c.csv"], "siglip2_bimamba_e2p_q_plus2"),
        ("/models/averylongtowername-x", ["q.train.csv"], "averylongt_bimamba_e2p_q.train"),
        ("clip", [], "clip_bimamba_e2p_data"),
    ],
)
def test_checkpoint_files(tower: str, tables: list[str], expected: str) -> None:
    models = {**NAMES, "vision_name": tower}
    found = settings(models=models, image_processing={"crop_strategy": "e2p"})
    assert checkpoint_stem(found, tables) == expected


def test_epoch_and_loss_in_the_name() -> None:
    assert checkpoint_name("stem", 3, 0.12345) == "stem_epoch03_loss0.1235.ckpt"
    assert checkpoint_name("stem", 123, 20.0) == "stem_epoch123_loss20.0000.ckpt"


def test_moving_aside_never_overwrites(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert move_aside(folder) is None
    for number in (1, 2, 3):
        folder.mkdir()
        (folder / "file").write_text(str(number))
        assert move_aside(folder) == tmp_path / f"run.{number}"
    assert not folder.exists()
    assert [(tmp_path / f"run.{n}" / "file").read_text() for n in (1, 2, 3)] == ["1", "2", "3"]
