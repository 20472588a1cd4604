"""The adapter to mamba-ssm, with a package of its name that computes what mamba-ssm documents.

mamba-ssm's kernels need a CUDA device; what can be wrong here is which argument goes where, in
which type. So a process of its own finds a package with the signature of mamba-ssm's function
(``selective_scan_fn`` of its version 2), which refuses what its kernels refuse and computes the
recurrence in float64.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from panovlm.errors import ConfigError, MissingDependencyError
from panovlm.models.mamba import backends, scan_mamba_ssm

PACKAGE = """
import torch

def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
                      return_last_state=False):
    assert u.dtype == delta.dtype == B.dtype == C.dtype
    assert z is None or z.dtype == u.dtype
    assert A.dtype == torch.float32
    assert D is None or D.dtype == torch.float32
    assert delta_bias is None or delta_bias.dtype == torch.float32
    kind = u.dtype
    u, delta, A, B, C = (t.double() for t in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.double()[:, None]
    if delta_softplus:
        delta = torch.log1p(torch.exp(delta))
    state, outputs = 0, []
    for t in range(u.shape[2]):
        decay = torch.exp(delta[:, :, t, None] * A)
        state = decay * state + (delta * u)[:, :, t, None] * B[:, None, :, t]
        outputs.append((state * C[:, None, :, t]).sum(2))
    y = torch.stack(outputs, 2)
    if D is not None:
        y = y + D.double()[:, None] * u
    if z is not None:
        y = y * z.double() * torch.sigmoid(z.double())
    return y.to(kind)
"""

PROGRAM = """
import itertools
import torch
from panovlm.models.mamba import scan_mamba_ssm
from panovlm.models.mamba.scan import selective_scan

torch.manual_seed(0)
def draw(*size, dtype=torch.float32):
    return torch.randn(*size).to(dtype)

for dtype, gated, skip, shift in itertools.product(
    (torch.float32, torch.bfloat16), *[(True, False)] * 3
):
    given = (draw(2, 3, 7, dtype=dtype), draw(2, 3, 7, dtype=dtype), -draw(3, 4).exp(),
             draw(2, 4, 7, dtype=dtype), draw(2, 4, 7),
             draw(3) if skip else None, draw(2, 3, 7, dtype=dtype) if gated else None,
             draw(3, dtype=dtype) if shift else None)
    found = scan_mamba_ssm.scan(given, True)
    doubles = [None if t is None else t.double() for t in given]
    wanted = selective_scan(*doubles, delta_softplus=True)
    assert found.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    assert (found - wanted).abs().max() < tolerance * wanted.abs().max()
"""


def test_arguments_are_where_mamba_ssm_wants_them(tmp_path: Path) -> None:
    module = tmp_path / "mamba_ssm" / "ops" / "selective_scan_interface.py"
    module.parent.mkdir(parents=True)
    module.write_text(PACKAGE)
    for folder in (module.parent, module.parent.parent):
        (folder / "__init__.py").touch()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def installed(monkeypatch, tmp_path: Path):
    """Make the package findable; without its CUDA extension it cannot be imported."""
    (tmp_path / "mamba_ssm").mkdir()
    (tmp_path / "mamba_ssm" / "__init__.py").write_text("import selective_scan_cuda")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    backends.use("auto")


@pytest.mark.usefixtures("installed")
def test_it_is_for_cuda_devices() -> None:
    backends.use("mamba_ssm")
    assert backends.for_scan(torch.device("cuda:0"), torch.float32, 1) == "mamba_ssm"
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"'mamba_ssm'.*CUDA devices only"):
            backends.for_scan(torch.device("cpu"), torch.float32, 1)


@pytest.mark.usefixtures("installed")
def test_a_build_that_cannot_be_imported() -> None:
    with pytest.raises(MissingDependencyError, match="selective_scan_cuda"):
        scan_mamba_ssm.scan([torch.ones(1, 1, 1)] * 2 + [torch.ones(1, 1)], False)


def test_without_the_package(monkeypatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install mamba-ssm"):
        backends.use("mamba_ssm")
    assert backends.chosen() == "auto"
