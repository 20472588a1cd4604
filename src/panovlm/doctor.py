"""What this machine offers PanoVLM, and whether it works: the checks of ``panovlm doctor``."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec
from pathlib import Path
from subprocess import CalledProcessError
from typing import TYPE_CHECKING, Any, Literal

from packaging.requirements import Requirement

from panovlm.errors import PanoVLMError

if TYPE_CHECKING:
    from panovlm.models.mamba.backends import Backend

Outcome = Literal["works", "note", "fault"]

PACKAGE = "panovlm"
EXTRAS = {
    "eval": "caption metrics; without it only accuracy is computed",
    "fast": "compiled loops for BiMamba on the CPU; without it plain torch is used",
    "quant": "language models in four or eight bits; without it they are used in full precision",
}
TOLERANCE = 1e-5
"""Largest error of a scan in float32 relative to the largest value; some 1e-7 is usual."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    outcome: Outcome
    detail: str

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def checks() -> Iterator[Check]:
    """Look at everything that a training or an evaluation on this machine needs."""
    yield Check(PACKAGE, "works", f"{version(PACKAGE)}, Python {platform.python_version()}")
    yield _required()
    yield from _extras()
    yield _processor()
    yield _accelerator()
    yield from _scans()
    yield _hub()
    yield _disk(Path.cwd())


def _required() -> Check:
    """Compare the installed packages with what PanoVLM asks for."""
    needed = [r for r in _requirements() if r.marker is None or r.marker.evaluate()]
    faults = [fault for r in needed if (fault := _fault(r))]
    if faults:
        return Check("packages", "fault", f"{'; '.join(faults)}. Run: pip install -U {PACKAGE}")
    named = ("torch", "transformers", "lightning", "peft")
    return Check("packages", "works", ", ".join(f"{name} {version(name)}" for name in named))


def _extras() -> Iterator[Check]:
    provided = metadata(PACKAGE).get_all("Provides-Extra") or ()
    for extra, use in EXTRAS.items():
        if extra not in provided:
            continue  # installed from an older source tree
        wanted = [r for r in _requirements() if r.marker and r.marker.evaluate({"extra": extra})]
        wanted = [r for r in wanted if not r.marker or not r.marker.evaluate({"extra": ""})]
        faults = [fault for r in wanted if (fault := _fault(r))]
        name = f"extra {extra}"
        if faults:
            mend = f"pip install '{PACKAGE}[{extra}]'"
            yield Check(name, "note", f"{'; '.join(faults)} ({use}). To have it: {mend}")
        else:
            yield Check(name, "works", ", ".join(f"{r.name} {version(r.name)}" for r in wanted))


def _requirements() -> list[Requirement]:
    return [Requirement(text) for text in requires(PACKAGE) or ()]


def _fault(requirement: Requirement) -> str | None:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(found, prereleases=True):
        return None
    return f"{requirement.name} {found} is installed, {requirement.specifier} is needed"


def _processor() -> Check:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Check(
        "processor",
        "works",
        f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} thread(s), "
        f"{torch.backends.cpu.get_cpu_capability()}, {memory:.0f} GiB of memory",
    )


def _accelerator() -> Check:
    """Multiply two matrices on the device that training chooses by itself."""
    import torch

    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return Check("accelerator", "note", "none that torch can use; everything runs on the CPU")
    name = _described() if device.type == "cuda" else f"{device.type} (commands: --device)"
    try:
        ones = torch.ones(64, 64, device=device)
        right = bool((ones @ ones == 64).all())
    except RuntimeError as error:
        return Check("accelerator", "fault", f"{name}: {str(error).splitlines()[0]}")
    return Check("accelerator", "works" if right else "fault", name)


def _described() -> str:
    """Say which GPUs there are, and in what they train where no precision is chosen."""
    import torch

    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    own = torch.cuda.is_bf16_supported(including_emulation=False)
    precision = "bf16-mixed" if own else "32-true, since it only emulates bfloat16"
    return (
        f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, {memory:.0f} GiB; "
        f"precision auto trains in {precision}"
    )


def _scans() -> Iterator[Check]:
    """Compare every installed implementation of the selective scan with the recurrence itself."""
    import torch

    from panovlm.models.mamba import backends

    auto = backends.has_numba()
    yield _scan("torch", "cpu", f"{'small' if auto else 'all'} scans on the CPU")
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is not None:
        yield _scan("torch", device.type, f"all scans on {device.type}")
    if auto:
        yield _scan("numba", "cpu", "large scans on the CPU")
    if find_spec("triton"):
        yield _scan_by_triton()
    if find_spec("mamba_ssm"):
        yield _scan_by_mamba_ssm()


def _scan_by_triton() -> Check:
    import torch

    from panovlm.models.mamba import backends

    if backends.interpreted():
        return _scan("triton", "cpu", None)
    if not torch.cuda.is_available():
        return Check("scan by triton", "note", "not tried; it needs a CUDA device")
    if lack := backends.missing_for_triton():
        return Check("scan by triton", "note", lack)
    from triton.errors import TritonError

    return _scan("triton", "cuda", None, (TritonError, CalledProcessError, OSError))


def _scan_by_mamba_ssm() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("scan by mamba_ssm", "note", "not tried; it needs a CUDA device")
    return _scan("mamba_ssm", "cuda", None)


def _scan(
    backend: Backend,
    device: str,
    used: str | None,
    faults: tuple[type[Exception], ...] = (),
) -> Check:
    """Try one implementation.

    Args:
        backend: its name.
        device: where it is tried.
        used: for what ``auto`` takes it, if for anything.
        faults: errors by which it says that it does not work, besides torch's and our own.
    """
    on_gpu = backend == "torch" and device != "cpu"
    name = f"scan by {backend}" + on_gpu * f" on {device}"
    try:
        error = _scan_error(backend, device)
    except (RuntimeError, PanoVLMError, *faults) as fault:
        return Check(name, "fault", (str(fault).splitlines() or [type(fault).__name__])[0])
    detail = f"error {error:.0e} of the largest value; `auto` "
    detail += f"uses it for {used}" if used else "does not take it"
    return Check(name, "works" if error <= TOLERANCE else "fault", detail)


def _scan_error(backend: Backend, device: str) -> float:
    import torch

    from panovlm.models.mamba import backends
    from panovlm.models.mamba.scan import selective_scan

    generator = torch.Generator().manual_seed(0)
    batch, width, length, n = 2, 6, 40, 5

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    u, delta, a = draw(batch, width, length), draw(batch, width, length), -draw(width, n).exp()
    b, c, d = draw(batch, n, length), draw(batch, n, length), draw(width)
    before = backends.chosen()
    backends.use(backend)
    try:
        found = selective_scan(u, delta, a, b, c, d, delta_softplus=True)
    finally:
        backends.use(before)
    found = found.cpu()
    u, delta, a, b, c, d = (t.cpu().double() for t in (u, delta, a, b, c, d))
    step = torch.nn.functional.softplus(delta)
    state = torch.zeros(batch, width, n, dtype=torch.float64)
    outputs: list[torch.Tensor] = []
    for t in range(length):
        decay = torch.exp(step[:, :, t, None] * a)
        state = decay * state + (step * u)[:, :, t, None] * b[:, None, :, t]
        outputs.append((state * c[:, None, :, t]).sum(-1) + d * u[:, :, t])
    wanted = torch.stack(outputs, -1)
    return float((found - wanted).abs().max() / wanted.abs().max())


def _hub() -> Check:
    from huggingface_hub import is_offline_mode
    from huggingface_hub.constants import HF_HUB_CACHE

    offline = "HF_HUB_OFFLINE is set: only local models" if is_offline_mode() else "asked by name"
    return Check("model hub", "works", f"{offline}; cache in {HF_HUB_CACHE}")


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / 2**30
    if not os.access(folder, os.W_OK):
        return Check(
            "disk", "note", f"{folder} cannot be written to; run commands in another folder"
        )
    return Check("disk", "note" if free < 5 else "works", f"{free:.0f} GiB free in {folder}")
