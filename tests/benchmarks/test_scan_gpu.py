"""The measurement of the scan on a GPU says what it lacks where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scan_gpu.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure")
def test_it_refuses_to_measure_without_a_gpu() -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip() == "scan_gpu.py needs a CUDA device, and torch finds none here"
