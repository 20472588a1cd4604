"""The overlap head: layer indices and widths."""

from __future__ import annotations

import pytest
import torch

from panovlm.config.schema import ModelSettings
from panovlm.models.vision.vicreg import VICRegProjector


def shapes(**changes: object) -> dict[str, tuple[int, ...]]:
    head = VICRegProjector(ModelSettings(latent_dimension=12, **changes))
    return {name: tuple(value.shape) for name, value in head.state_dict().items()}


def test_with_layer_norm():
    assert shapes(vicreg_projector_dim=5, vicreg_projector_hidden=7, vicreg_projector_depth=3) == {
        "mlp.0.weight": (7, 12),
        "mlp.0.bias": (7,),
        "mlp.1.weight": (7,),
        "mlp.1.bias": (7,),
        "mlp.3.weight": (7, 7),
        "mlp.3.bias": (7,),
        "mlp.4.weight": (7,),
        "mlp.4.bias": (7,),
        "mlp.6.weight": (5, 7),
        "mlp.6.bias": (5,),
    }


def test_without_layer_norm_the_places_stay():
    found = shapes(vicreg_projector_ln=False, vicreg_projector_depth=3)
    assert sorted(found) == [f"mlp.{i}.{leaf}" for i in (0, 3, 6) for leaf in ("bias", "weight")]


@pytest.mark.parametrize(
    ("changes", "hidden", "output"),
    [
        ({}, 12, 12),
        ({"vicreg_projector_dim": 6}, 6, 6),
        ({"vicreg_projector_hidden": 9}, 9, 12),
        ({"vicreg_projector_dim": 6, "vicreg_projector_hidden": 9}, 9, 6),
    ],
)
def test_widths_when_unset(changes, hidden, output):
    found = shapes(**changes)
    assert found["mlp.0.weight"] == (hidden, 12)
    assert found["mlp.3.weight"] == (output, hidden)


def test_depth_one_is_one_matrix():
    assert shapes(vicreg_projector_depth=1, vicreg_projector_dim=4) == {
        "mlp.0.weight": (4, 12),
        "mlp.0.bias": (4,),
    }


@pytest.mark.parametrize("norm", [True, False])
def test_forward_by_hand(norm):
    torch.manual_seed(0)
    models = ModelSettings(latent_dimension=12, vicreg_projector_dim=4, vicreg_projector_ln=norm)
    head = VICRegProjector(models).double()
    x = torch.randn(2, 3, 12, dtype=torch.float64)
    w = head.state_dict()
    h = x @ w["mlp.0.weight"].T + w["mlp.0.bias"]
    if norm:
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    h = 0.5 * h * (1 + torch.erf(h / 2**0.5))
    expected = h @ w["mlp.3.weight"].T + w["mlp.3.bias"]
    torch.testing.assert_close(head(x), expected)
