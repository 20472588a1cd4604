"""Thousands of random settings per architecture come back from the shapes that they give.

Shapes are written down here as formulas, so that depths above a hundred and thousands of cases cost
nothing; that the networks have these very shapes is checked on some of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch

from panovlm.checkpoint.settle.shapes import Shapes
from panovlm.models.resamplers import recipe, recipes

Named = dict[str, tuple[int, ...]]
CASES = 3000


def linear(name: str, out: int, into: int) -> Named:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> Named:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def mlp(dv: int, dl: int, *, hidden_dim: int, depth: int, use_ln: bool) -> Named:
    step, width, found = 3 if use_ln else 2, dv, {}
    for j in range(depth - 1):
        found |= linear(f"mlp.{step * j}", hidden_dim, width)
        found |= norm(f"mlp.{step * j + 1}", hidden_dim) if use_ln else {}
        width = hidden_dim
    return found | linear(f"mlp.{step * (depth - 1)}", dl, width)


def bimamba(
    dv: int, dl: int, *, hidden_dim: int, depth: int, expand: float, d_state: int, d_conv: int
) -> Named:
    h, n = hidden_dim, d_state
    inner, rank = int(expand * h), math.ceil(h / 16)
    found = linear("input_proj", h, dv) | norm("final_norm", h) | linear("output_proj", dl, h)
    for i in range(depth):
        found |= norm(f"blocks.{i}.norm", h)
        for direction in ("forward_block", "backward_block"):
            mixer = {
                "in_proj.weight": (2 * inner, h),
                "conv1d.weight": (inner, 1, d_conv),
                "conv1d.bias": (inner,),
                "x_proj.weight": (rank + 2 * n, inner),
                "dt_proj.weight": (inner, rank),
                "dt_proj.bias": (inner,),
                "A_log": (inner, n),
                "D": (inner,),
                "out_proj.weight": (h, inner),
            }
            found |= {f"blocks.{i}.{direction}.{name}": shape for name, shape in mixer.items()}
    return found


def qformer(dv: int, dl: int, *, num_query_tokens: int, num_hidden_layers: int) -> Named:
    found = {"query": (1, num_query_tokens, dv), **linear("proj", dl, dv)}
    tables = {"word": 30522, "position": 512, "token_type": 2}
    found |= {f"bert.embeddings.{t}_embeddings.weight": (rows, dv) for t, rows in tables.items()}
    found |= norm("bert.embeddings.LayerNorm", dv) | linear("bert.pooler.dense", dv, dv)
    for i in range(num_hidden_layers):
        layer = f"bert.encoder.layer.{i}"
        for attention in ("attention", "crossattention"):
            for part in ("query", "key", "value"):
                found |= linear(f"{layer}.{attention}.self.{part}", dv, dv)
            found |= linear(f"{layer}.{attention}.output.dense", dv, dv)
            found |= norm(f"{layer}.{attention}.output.LayerNorm", dv)
        found |= linear(f"{layer}.intermediate.dense", 4 * dv, dv)
        found |= linear(f"{layer}.output.dense", dv, 4 * dv)
        found |= norm(f"{layer}.output.LayerNorm", dv)
    return found


def perceiver(dv: int, dl: int, *, num_latents: int, hidden_dim: int, depth: int) -> Named:
    h = hidden_dim
    found = {"latents": (num_latents, h), "final_norm.weight": (h,)}
    found |= linear("input_proj", h, dv) | linear("output_proj", dl, h)
    for i in range(depth):
        for part in ("latents_norm", "context_norm", "mlp_norm"):
            found[f"layers.{i}.{part}.weight"] = (h,)
        for part in "qkvo":
            found[f"layers.{i}.attention.{part}_proj.weight"] = (h, h)
        for part, shape in {"gate": (4 * h, h), "up": (4 * h, h), "down": (h, 4 * h)}.items():
            found[f"layers.{i}.mlp.{part}_proj.weight"] = shape
    return found


def conv(dv: int, dl: int, *, hidden_dim: int, depth: int, stride: int) -> Named:
    h = hidden_dim
    found = norm("norm", dv) | norm("final_norm", h) | linear("output_proj", dl, h)
    found |= {"downsample.weight": (h, dv, stride, stride), "downsample.bias": (h,)}
    for i in range(depth):
        layer = f"layers.{i}"
        found |= {f"{layer}.dwconv.weight": (h, 1, 7, 7), f"{layer}.dwconv.bias": (h,)}
        found |= norm(f"{layer}.layernorm", h) | {f"{layer}.layer_scale_parameter": (h,)}
        found |= linear(f"{layer}.pwconv1", 4 * h, h) | linear(f"{layer}.pwconv2", h, 4 * h)
    return found


def c_abstractor(
    dv: int, dl: int, *, hidden_dim: int, depth: int, rows: int, columns: int, mlp_depth: int
) -> Named:
    h, found = hidden_dim, {"grid": (rows, columns)}
    for i in range(2 * depth):
        into = h if i else dv
        block = f"before.{i}" if i < depth else f"after.{i - depth}"
        inner = max(1, round(into / 4))
        convolutions = {"conv1": (into, 1), "conv2": (1, 3), "conv3": (h, 1)}
        for j, (part, (channels, side)) in enumerate(convolutions.items(), start=1):
            found[f"{block}.{part}.weight"] = (h, channels, side, side)
            found |= norm(f"{block}.norm{j}", h)
        for part, (out, channels) in {"reduce": (inner, h), "excite": (h, inner)}.items():
            shapes = {"weight": (out, channels, 1, 1), "bias": (out,)}
            found |= {f"{block}.{part}.{kind}": shape for kind, shape in shapes.items()}
        if into != h:
            found[f"{block}.shortcut.weight"] = (h, into, 1, 1)
            found |= norm(f"{block}.shortcut_norm", h)
    for i in range(mlp_depth):
        found |= linear(f"readout.{2 * i}", dl, dl if i else h)
    return found


def identity(dv: int, dl: int) -> Named:
    return {"identity": (dv,)}


def avg_pool(dv: int, dl: int, *, window: int) -> Named:
    return {"avg_pool": (dv,), "window": (window,)}


def spatial_pool(dv: int, dl: int, *, rows: int, columns: int) -> Named:
    return {"spatial_pool": (dv,), "grid": (rows, columns)}


def masked_drop(dv: int, dl: int) -> Named:
    return {"masked_drop": (dv,)}


def depth(random: Random) -> int:
    """Mostly a few, now and then more than a hundred."""
    return random.randint(101, 140) if random.random() < 0.01 else random.randint(1, 4)


def expand(random: Random, hidden_dim: int) -> float:
    """A factor of few or many decimals, sometimes one whose product is rounded before it is cut."""
    found = random.choice(
        [
            random.choice([1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 4.0, 0.29, 1.1, 2.3]),
            round(random.uniform(0.05, 5), random.randint(1, 4)),
            random.uniform(0.05, 5),
            random.randint(1, 5 * hidden_dim) / hidden_dim,
        ]
    )
    return found if int(found * hidden_dim) else 1.0


def mlp_settings(random: Random) -> dict[str, Any]:
    return {
        "hidden_dim": random.randint(1, 3000),
        "depth": depth(random),
        "use_ln": random.random() < 0.5,
    }


def bimamba_settings(random: Random) -> dict[str, Any]:
    hidden = random.choice([random.randint(1, 64), random.randint(1, 4096)])
    return {
        "hidden_dim": hidden,
        "depth": depth(random),
        "expand": expand(random, hidden),
        "d_state": random.randint(1, 256),
        "d_conv": random.randint(1, 9),
    }


def qformer_settings(random: Random) -> dict[str, Any]:
    return {"num_query_tokens": random.randint(1, 512), "num_hidden_layers": depth(random)}


def side(random: Random) -> int:
    return random.randint(1, 64)


def perceiver_settings(random: Random) -> dict[str, Any]:
    return {
        "num_latents": random.randint(1, 700),
        "hidden_dim": random.randint(1, 2048),
        "depth": depth(random),
    }


def conv_settings(random: Random) -> dict[str, Any]:
    return {
        "hidden_dim": random.randint(1, 2048),
        "depth": depth(random),
        "stride": random.randint(1, 64),
    }


def c_abstractor_settings(random: Random) -> dict[str, Any]:
    grid = {"rows": side(random), "columns": side(random), "mlp_depth": random.randint(1, 5)}
    return {"hidden_dim": random.randint(1, 2048), "depth": depth(random), **grid}


FORMULAS: dict[str, tuple[Callable[..., Named], Callable[[Random], dict[str, Any]]]] = {
    "mlp": (mlp, mlp_settings),
    "bimamba": (bimamba, bimamba_settings),
    "qformer": (qformer, qformer_settings),
    "perceiver": (perceiver, perceiver_settings),
    "conv": (conv, conv_settings),
    "c_abstractor": (c_abstractor, c_abstractor_settings),
    "identity": (identity, lambda random: {}),
    "avg_pool": (avg_pool, lambda random: {"window": side(random)}),
    "spatial_pool": (
        spatial_pool,
        lambda random: {"rows": side(random), "columns": side(random)},
    ),
    "masked_drop": (masked_drop, lambda random: {}),
}
WEIGHTLESS = {"identity", "avg_pool", "spatial_pool", "masked_drop"}


def test_every_architecture_has_a_formula() -> None:
    assert set(FORMULAS) == set(recipes())


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_they_come_back(name: str) -> None:
    formula, draw = FORMULAS[name]
    random, architecture = Random(name), recipe(name)
    deepest = 0
    for _ in range(CASES):
        given, dv, dl = draw(random), random.randint(1, 2048), random.randint(1, 2048)
        dl = dv if name in WEIGHTLESS else dl
        shapes = formula(dv, dl, **given)
        claims = [n for n, r in recipes().items() if not r.missing(Shapes(shapes))]
        assert claims == [name], given
        seen = architecture.infer(Shapes(shapes))
        assert (seen["vision_dim"].value, seen["latent_dimension"].value) == (dv, dl)
        found = {field: seen[field].value for field in given if field in seen}
        unseen = {"hidden_dim", "use_ln"} if given.get("depth") == 1 and name == "mlp" else set()
        assert found.keys() == given.keys() - unseen
        for field, value in found.items():
            assert architecture.agrees(field, given[field], seen), (field, given)
            if field == "expand":  # the shortest number of all that give this width
                assert len(repr(value)) <= len(repr(given[field]))
            else:
                assert value == given[field], (field, given)
        assert formula(dv, dl, **{**given, **found}) == shapes
        deepest = max(deepest, given.get("depth") or given.get("num_hidden_layers", 0))
    assert deepest > 100 or name in WEIGHTLESS


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_the_networks_have_these_shapes(name: str) -> None:
    """And fields that no shape shows change none of them."""
    formula, draw = FORMULAS[name]
    random, architecture = Random(name), recipe(name)
    others = {
        "norm_first": False,
        "directions": "sum",
        "cross_view": True,
        "dropout": 0.77,
        "drop_path": 0.77,
        "rate": 0.77,
        "mode": "max",
        "num_attention_heads": 1,
    }
    hidden = [f for f, kind in architecture.observability.items() if kind != "observable"]
    for case in range(5):
        given, dv, dl = draw(random), random.randint(1, 512), random.randint(1, 512)
        dl = dv if name in WEIGHTLESS else dl
        size = "num_hidden_layers" if name == "qformer" else "depth"
        if size in given:
            given[size] = 101 if case == 0 else min(given[size], 4)
        changed = {field: others[field] for field in hidden if case % 2}
        heads = {"num_attention_heads": 1} if "num_attention_heads" in hidden else {}
        settings = architecture.settings(**{**given, **heads, **changed})
        with torch.device("meta"):
            module = architecture.build(settings, vision_dim=dv, latent_dimension=dl)
        built = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
        assert built == formula(dv, dl, **given)
