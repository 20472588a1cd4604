"""Components get their inputs in the type that they compute in."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from panovlm.models.precision import in_dtype_of


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Be the only process of a group."""
    meeting = tmp_path_factory.mktemp("group") / "meeting"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


class Two(nn.Module):
    """Two components in a row, each of which may have a type of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.first(in_dtype_of(self.first, x))
        return self.second(in_dtype_of(self.second, x))


def test_weights_tell_the_type():
    model = Two()
    model.second.bfloat16()
    assert model(torch.ones(1, 3).double()).dtype == torch.bfloat16


def test_without_weights_nothing_changes():
    x = torch.ones(2).half()
    assert in_dtype_of(nn.Identity(), x) is x
    assert in_dtype_of(nn.Embedding(2, 2).to(torch.float64), x).dtype == torch.float64


@pytest.mark.parametrize("policy", [None, ModuleWrapPolicy({nn.Linear})])
@pytest.mark.parametrize("param_dtype", [torch.bfloat16, None])
@pytest.mark.parametrize("original", [True, False])
def test_units_of_fsdp_compute_in_the_type_they_are_given(alone, policy, param_dtype, original):
    model = FullyShardedDataParallel(
        Two(),
        device_id=torch.device("cpu"),
        auto_wrap_policy=policy,
        mixed_precision=MixedPrecision(param_dtype=param_dtype),
        use_orig_params=original,
    )
    y = model(torch.ones(5, 3))
    assert y.dtype == (param_dtype or torch.float32)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
