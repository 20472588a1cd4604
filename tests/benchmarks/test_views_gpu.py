"""The measurement of views on a GPU says what it lacks where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "views_gpu.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure")
def test_it_measures_nothing_without_a_gpu(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--update", str(page)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "no CUDA device: there is nothing to compare the loaders with\n"
    assert not page.exists()
