"""An overlap loss on two processes with half the batch each, against one with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tests.training.conftest import MakeSettings
from tests.training.losses.two_halves import CUTS

from panovlm.checkpoint.saving.save import save_checkpoint
from panovlm.config.schema import ModelSettings
from panovlm.training.losses.processes import gathers
from panovlm.training.stage import stage_model
from panovlm.training.tables import Tables

PROGRAM = Path(__file__).with_name("two_halves.py")
OWN = "vicreg, batchwise, each process by itself"
LOSSES = get_args(ModelSettings.model_fields["overlap_loss"].annotation)
CASES: dict[str, dict[str, Any]] = {
    **{
        f"{loss}, {pairs}": {"overlap_loss": loss, "overlap_pairs": pairs, "overlap_gather": True}
        for loss, pairs in product(LOSSES, ("columns", "directions"))
    },
    "vicreg, batchwise": {"vicreg_mode": "batchwise", "overlap_gather": True},
    "dense_cl, unset": {"overlap_loss": "dense_cl"},
    "info_nce, by itself": {"overlap_loss": "info_nce", "overlap_gather": False},
    "vicreg, unset": {},
    OWN: {"vicreg_mode": "batchwise"},
}
SAME = [case for case in CASES if case != OWN]


@pytest.fixture(scope="module")
def folder(make_settings: MakeSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("halves")
    settings = make_settings(
        folder,
        "models.vision_config={patch_size: 4, attention_dropout: 0.0}",
        "models.resampler_type=mlp",
        "models.resampler_config={depth: 1, hidden_dim: 8, dropout: 0.0}",
    )
    torch.manual_seed(0)
    model = stage_model(settings, "vision", Tables(settings), None)
    save_checkpoint(model, folder / "base.ckpt")
    pixels = torch.randn(4, 9, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.save(pixels, folder / "pixels.pt")
    torch.save(CASES, folder / "cases.pt")
    done = subprocess.run(
        [sys.executable, PROGRAM, folder],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module", params=CUTS, ids=["halves", "unequal"])
def computed(folder: Path, request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What one process found, and what each of two did."""
    files = ("whole", f"{request.param}-0", f"{request.param}-1")
    return [torch.load(folder / f"{file}.pt", weights_only=True) for file in files]


@pytest.mark.parametrize("case", SAME)
def test_two_halves_are_one_whole(computed: Any, case: str) -> None:
    whole, first, second = (found[case] for found in computed)
    if CASES[case].get("overlap_gather", case == "dense_cl, unset"):
        torch.testing.assert_close(first["loss"], whole["loss"])
        assert first["loss"] == second["loss"]  # of the same tensor
    assert whole.keys() == first.keys() == second.keys()
    assert len(whole) > 5
    names = sorted(whole.keys() - {"loss"})
    largest = max(float(whole[name].abs().max()) for name in names)
    for name in names:
        torch.testing.assert_close(first[name], whole[name], rtol=1e-3, atol=1e-5 * largest)


def test_statistics_of_a_batch_are_those_of_a_process_otherwise(computed: Any) -> None:
    whole, first, _ = (found[OWN] for found in computed)
    assert (first["loss"] - whole["loss"]).abs() > 1e-3


def test_one_process_gathers_nothing() -> None:
    assert not gathers(ModelSettings(overlap_loss="barlow_twins", overlap_gather=True))
