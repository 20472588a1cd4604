"""The Triton backend: its cases in processes of their own, its compiler, and when it is chosen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from panovlm.errors import ConfigError, MissingDependencyError
from panovlm.models.mamba import backends

CASES = Path(__file__).with_name("triton_cases.py")
CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture(autouse=True)
def triton_is_there():
    pytest.importorskip("triton")
    backends.missing_for_triton.cache_clear()
    yield
    backends.missing_for_triton.cache_clear()
    backends.use("auto")


def run_cases(**environment: str) -> None:
    command = [sys.executable, "-m", "pytest", str(CASES), "-p", "no:cacheprovider", "-W", "ignore"]
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        command, env=inherited | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


def test_in_tritons_interpreter() -> None:
    run_cases(TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_cuda_device() -> None:
    run_cases()


BARE = {"z", "dz", "D", "bias"}
"""Arguments that may be left out; forwards also the states that are kept."""
OPTIONS = ("SOFTPLUS", "CHANNELS", "STATES", "TILE")


def signature(kernel, dtype: str, constants: dict[str, object]) -> dict[str, object]:
    """Return the types of a kernel's arguments, as a call would find them."""
    from panovlm.models.mamba.tiles_triton import Steps

    def steps(of: str) -> Steps:
        return Steps(f"*{of}", "i32", "i32")

    found = dict.fromkeys(kernel.arg_names, "*fp32")
    for name in {"u", "delta", "B", "C", "z", "y", "dy", "du", "d_delta", "dz"} & found.keys():
        found[name] = steps(dtype)
    for name in {"dB", "dC"} & found.keys():
        found[name] = steps("fp32")
    found |= dict.fromkeys(("length", "width", "n"), "i32")
    return found | dict.fromkeys(constants, "constexpr")


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("name", ["forward", "backward"])
def test_kernels_compile_without_a_gpu(monkeypatch, tmp_path, name, bare) -> None:
    """The interpreter takes more than the compiler does, and rounds differently."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from panovlm.models.mamba import kernels_triton

    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    kernel = getattr(kernels_triton, name)
    if bare:  # nothing that can be left out, and sizes of one, which Triton makes constants
        left_out = BARE | ({"kept"} if name == "forward" else set())
        constants = dict.fromkeys(left_out & set(kernel.arg_names))
        constants |= dict.fromkeys(("length", "width", "n"), 1)
        constants |= dict(zip(OPTIONS, (False, 1, 1, 2), strict=True))
    else:
        constants = dict(zip(OPTIONS, (True, 4, 64, 2), strict=True))
    dtype, capability = ("fp16", 80) if bare else ("bf16", 90)
    source = ASTSource(kernel, signature(kernel, dtype, constants), constexprs=constants)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": 1})
    code = compiled.asm["ptx"]
    assert "ex2.approx" in code
    assert not re.search(r"\b(atom|red)\.", code)  # additions in no fixed order
    assert f"cvt.rn.{'f16' if bare else 'bf16'}" in code  # rounds to the nearest
    assert compiled.asm["cubin"]


def test_the_cpu_needs_the_interpreter() -> None:
    backends.use("triton")
    if torch.cuda.is_available():
        assert backends.for_scan(CPU, torch.float32, 1) == "torch"
    else:
        with pytest.raises(ConfigError, match=r"'triton'.*CUDA devices only.*on cpu"):
            backends.for_scan(CPU, torch.float32, 1)
    assert backends.for_scan(CUDA, torch.float32, 1) == "triton"
    assert backends.for_scan(CUDA, torch.float64, 1) == "torch"
    with pytest.raises(ConfigError, match="on mps"):
        backends.for_scan(torch.device("mps"), torch.float32, 1)


def test_scans_on_the_cpu_beside_a_gpu_go_by_auto(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    backends.use("triton")
    assert backends.for_scan(CPU, torch.float32, 1) == "torch"


def test_it_is_taken_by_name_only() -> None:
    assert backends.for_scan(CUDA, torch.float32, 1 << 40) == "torch"


def test_without_triton(monkeypatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install triton"):
        backends.use("triton")
    assert backends.for_scan(CUDA, torch.float32, 1) == "torch"


@pytest.mark.parametrize("lack", ["C compiler", r"Python\.h"])
def test_without_what_triton_compiles_with(monkeypatch, tmp_path, lack) -> None:
    monkeypatch.delenv("CC", raising=False)
    if lack == "C compiler":
        monkeypatch.setattr(backends.shutil, "which", lambda name: None)
    else:
        monkeypatch.setattr(backends.shutil, "which", lambda name: "/usr/bin/gcc")
        monkeypatch.setattr(
            backends.sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)}
        )
    with pytest.raises(MissingDependencyError, match=lack):
        backends.use("triton")
    assert backends.for_scan(CUDA, torch.float32, 1) == "torch"
