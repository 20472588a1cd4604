"""``panovlm doctor`` tells what is there, and notices what is missing or broken."""

from __future__ import annotations

import json
from importlib.metadata import version
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from panovlm import doctor
from panovlm.cli.main import main
from panovlm.models.mamba import backends, scan


def found(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, str]]]:
    code = main(["doctor", "--json"])
    return code, {check["name"]: check for check in json.loads(capsys.readouterr().out)}


def test_everything_works_here(capsys: pytest.CaptureFixture[str]) -> None:
    code, checks = found(capsys)
    assert code == 0
    assert f"torch {version('torch')}" in checks["packages"]["detail"]
    assert checks["extra fast"]["detail"] == f"numba {version('numba')}"
    assert {"scan by torch", "scan by numba", "model hub", "disk"} <= checks.keys()
    if find_spec("triton"):
        there = torch.cuda.is_available()
        assert checks["scan by triton"]["outcome"] == ("works" if there else "note")
    assert checks["accelerator"]["outcome"] == ("works" if torch.cuda.is_available() else "note")


def test_the_choice_of_the_scan_is_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    backends.use("torch")
    try:
        found(capsys)
        assert backends.chosen() == "torch"
    finally:
        backends.use("auto")


def test_packages_that_are_missing_or_old(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["torch>=99", "no-such-package", "absent-too; extra == 'fast'"]
    monkeypatch.setattr(doctor, "_requirements", lambda: [Requirement(text) for text in texts])
    code, checks = found(capsys)
    assert code == 1
    said = checks["packages"]["detail"]
    assert f"torch {version('torch')} is installed, >=99 is needed" in said
    assert "no-such-package is not installed" in said and "absent-too" not in said
    assert checks["extra fast"]["outcome"] == "note"
    assert "pip install 'panovlm[fast]'" in checks["extra fast"]["detail"]


def test_a_scan_that_computes_something_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = scan.selective_scan
    monkeypatch.setattr(scan, "selective_scan", lambda *given, **how: sound(*given, **how) + 0.1)
    code, checks = found(capsys)
    assert code == 1
    assert checks["scan by torch"]["outcome"] == "fault"


def test_a_machine_with_a_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's "meta" device stands for one: it is there, and every number on it is missing."""
    meta = torch.device("meta")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: meta)
    code, checks = found(capsys)
    assert code == 1
    assert checks["accelerator"]["outcome"] == "fault"
    assert checks["accelerator"]["detail"].startswith("meta (commands: --device): ")
    assert checks["scan by torch"]["outcome"] == "works"
    assert checks["scan by torch on meta"]["outcome"] == "fault"


@pytest.mark.parametrize(("major", "precision"), [(8, "bf16-mixed"), (7, "32-true, since")])
def test_what_is_said_of_a_gpu(major: int, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = SimpleNamespace(major=major, total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H100")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: known)
    said = doctor._described()
    assert said.startswith(f"2 x H100, 80 GiB; precision auto trains in {precision}")
