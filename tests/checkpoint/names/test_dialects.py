"""Other implementations' names for a bidirectional Mamba, translated or refused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from panovlm.checkpoint.names.keys import map_keys
from panovlm.checkpoint.resolve import resolve
from panovlm.errors import CheckpointError
from panovlm.models.model import PanoramaVLM
from panovlm.models.resamplers import recipe

RESAMPLER = "resampler_module.resampler."
PAIRS = {
    "A_log": "A_b_log",
    "D": "D_b",
    "conv1d.weight": "conv1d_b.weight",
    "conv1d.bias": "conv1d_b.bias",
    "x_proj.weight": "x_proj_b.weight",
    "dt_proj.weight": "dt_proj_b.weight",
    "dt_proj.bias": "dt_proj_b.bias",
}
SHARED = ("in_proj.weight", "out_proj.weight")
H, DEPTH, DV, DL = 20, 2, 32, 40
SIZES = {"hidden_dim": H, "depth": DEPTH, "expand": 1.5, "d_state": 3, "d_conv": 3}


def scan(u: Tensor, z: Tensor, w: dict[str, Tensor], mark: str) -> Tensor:
    """One direction of Vision Mamba, before ``out_proj``, as a loop in float64: [b, l, I]."""
    own = {k: w[PAIRS[k] if mark else k].double() for k in PAIRS}
    taps, length = own["conv1d.weight"].shape[-1], u.shape[1]
    padded = F.pad(u.transpose(1, 2), (taps - 1, 0))
    u = F.conv1d(padded, own["conv1d.weight"], own["conv1d.bias"], groups=u.shape[2])
    u = F.silu(u).transpose(1, 2)
    n, r = own["A_log"].shape[1], own["dt_proj.weight"].shape[1]
    dt, B, C = (u @ own["x_proj.weight"].T).split([r, n, n], dim=-1)
    delta = F.softplus(dt @ own["dt_proj.weight"].T + own["dt_proj.bias"])
    A, h, out = -torch.exp(own["A_log"]), 0.0, []
    for t in range(length):
        step = delta[:, t, :, None]
        h = torch.exp(step * A) * h + step * B[:, t, None] * u[:, t, :, None]
        out.append((h * C[:, t, None]).sum(-1) + own["D"] * u[:, t])
    return torch.stack(out, dim=1) * F.silu(z)


def vim(x: Tensor, w: dict[str, Tensor], *, divide: bool) -> Tensor:
    """Vision Mamba's mixer, ``bimamba_type="v2"``: one projection in, one out."""
    u, z = (x @ w["in_proj.weight"].double().T).chunk(2, dim=-1)
    both = scan(u, z, w, "") + scan(u.flip(1), z.flip(1), w, "_b").flip(1)
    return F.linear(both / 2 if divide else both, w["out_proj.weight"].double())


def vim_resampler(x: Tensor, state: dict[str, Tensor], wrapper: str, *, divide: bool) -> Tensor:
    def layer(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"].double(), state[f"{name}.bias"].double())

    def norm(name: str, x: Tensor) -> Tensor:
        weight, bias = (state[f"{name}.{part}"].double() for part in ("weight", "bias"))
        return F.layer_norm(x, (H,), weight, bias)

    x = layer("input_proj", x.double())
    for i in range(DEPTH):
        start = f"blocks.{i}.{wrapper}"
        w = {k.removeprefix(start): t for k, t in state.items() if k.startswith(start)}
        x = x + vim(norm(f"blocks.{i}.norm", x), w, divide=divide)
    return layer("output_proj", norm("final_norm", x))


def vim_state(wrapper: str) -> dict[str, Tensor]:
    """Tensors of a resampler of Vision Mamba's blocks, names below the resampler."""
    generator = torch.Generator().manual_seed(3)
    inner, n, k, r = int(1.5 * H), 3, 3, math.ceil(H / 16)
    shapes = {
        "A_log": (inner, n),
        "D": (inner,),
        "conv1d.weight": (inner, 1, k),
        "conv1d.bias": (inner,),
        "x_proj.weight": (r + 2 * n, inner),
        "dt_proj.weight": (inner, r),
        "dt_proj.bias": (inner,),
    }
    block = {"in_proj.weight": (2 * inner, H), "out_proj.weight": (H, inner), **shapes}
    block |= {PAIRS[name]: shape for name, shape in shapes.items()}
    whole = {"input_proj.weight": (H, DV), "input_proj.bias": (H,)}
    whole |= {"output_proj.weight": (DL, H), "output_proj.bias": (DL,)}
    whole |= {"final_norm.weight": (H,), "final_norm.bias": (H,)}
    for i in range(DEPTH):
        whole |= {f"blocks.{i}.norm.weight": (H,), f"blocks.{i}.norm.bias": (H,)}
        whole |= {f"blocks.{i}.{wrapper}{name}": shape for name, shape in block.items()}
    return {name: 0.4 * torch.randn(s, generator=generator) for name, s in whole.items()}


@pytest.fixture
def written(tmp_path):
    """Write the tensors of a whole original model with another resampler."""

    def write(build, files, backbones, state):
        path = files.write_run(tmp_path, build(resampler_type="bimamba"), backbones, aliases=False)
        contents = torch.load(path)
        others = {n: t for n, t in contents["state_dict"].items() if RESAMPLER not in n}
        contents["state_dict"] = {
            **others,
            **{f"model.{RESAMPLER}{name}": tensor for name, tensor in state.items()},
        }
        torch.save(contents, path)
        return path

    return write


@pytest.mark.parametrize("wrapper", ["", "mixer.", "mamba."])
@pytest.mark.parametrize("directions", ["sum", "mean"])
def test_vision_mamba_computes_the_same(
    directions, wrapper, written, build, files, backbones
) -> None:
    state = vim_state(wrapper)
    path = written(build, files, backbones, state)
    with pytest.raises(CheckpointError, match=r"adds the outputs.*resampler_config\.directions"):
        resolve(path)
    loaded = PanoramaVLM.from_checkpoint(path, overrides={"directions": directions})
    x = torch.randn(2, 7, DV, generator=torch.Generator().manual_seed(5))
    expected = vim_resampler(x, state, wrapper, divide=directions == "mean")
    with torch.no_grad():
        found = loaded.resampler_module.resampler(x).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    other = vim_resampler(x, state, wrapper, divide=directions != "mean")
    assert (found - other).abs().max() > 1e-2
    assert any("Vision Mamba" in note for note in loaded.resolution.notes)


def test_the_two_copies_of_a_shared_projection_are_two_parameters(
    written, build, files, backbones
) -> None:
    path = written(build, files, backbones, vim_state("mixer."))
    loaded = PanoramaVLM.from_checkpoint(path, overrides={"directions": "sum"})
    block = loaded.resampler_module.resampler.blocks[0]
    one, other = block.forward_block.in_proj.weight, block.backward_block.in_proj.weight
    assert torch.equal(one, other) and one.data_ptr() != other.data_ptr()


def test_names_of_transformers(build, files, backbones, tmp_path) -> None:
    model = build(resampler_type="bimamba")
    path = files.write_run(
        tmp_path,
        model,
        backbones,
        aliases=False,
        prefix=lambda n: "model." + n.replace("ward_block.", "ward_block.mixer."),
    )
    loaded = PanoramaVLM.from_checkpoint(path)
    theirs = model.state_dict()
    assert all(torch.equal(t, theirs[n]) for n, t in loaded.state_dict().items())


NATIVE = [
    "input_proj.weight",
    "final_norm.weight",
    "output_proj.weight",
    *(
        f"blocks.0.{d}_block.{n}"
        for d in ("forward", "backward")
        for n in ("A_log", "conv1d.weight")
    ),
]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["blocks.0.A_log", "blocks.0.A_b_log", "blocks.0.conv1d.weight"], "first version"),
        ([*NATIVE, "blocks.0.forward_block.dt_bias"], "Mamba-2"),
        (
            ["blocks.0.forward_block.mixer.A_log", "blocks.0.forward_block.norm.weight"],
            "a norm and a residual of its own",
        ),
    ],
)
def test_what_two_mixers_do_not_compute(names, told) -> None:
    with pytest.raises(CheckpointError, match=told):
        recipe("bimamba").dialect(names)
    with pytest.raises(CheckpointError, match=told):
        map_keys({f"model.{RESAMPLER}{name}": (2, 2) for name in names})


def test_names_of_today_are_no_dialect() -> None:
    names = [*NATIVE, "blocks.0.norm.weight"]
    assert recipe("bimamba").dialect(names) is None
    shapes = {RESAMPLER + name: (2, 2) for name in names}
    assert map_keys(shapes).dialect is None


def test_an_unknown_resampler_stays_unknown() -> None:
    shapes = {f"{RESAMPLER}{name}": (2, 2) for name in ("blocks.0.wq.weight", "mlp.weight")}
    found = map_keys(shapes)
    assert found.dialect is None and set(found.files) == set(shapes)
