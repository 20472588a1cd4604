"""Nothing of a model stays behind on the CPU when it is moved."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CASES = Path(__file__).with_name("standin_cases.py")


def test_on_a_device_that_is_not_the_cpu() -> None:
    """In a process of its own: to torch, the stand-in is an accelerator like any other."""
    command = [sys.executable, "-m", "pytest", str(CASES), "-p", "no:cacheprovider", "-W", "ignore"]
    paths = [str(CASES.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
