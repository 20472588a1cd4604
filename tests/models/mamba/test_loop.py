"""Closed loops against the open mixer, which reads one whole lap for every sequence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from panovlm.models.mamba.block import MambaMixer
from panovlm.models.mamba.loop import loop_past


def mixer(d_conv: int) -> MambaMixer:
    torch.manual_seed(0)
    made = MambaMixer(6, expand=1.5, d_state=3, d_conv=d_conv).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def lap_by_lap(made: MambaMixer, x: Tensor) -> Tensor:
    """For each sequence of one loop ``[v, l, d]``, an open scan of all, itself last."""
    rotated = [x.roll(-1 - v, 0).flatten(0, 1)[None] for v in range(len(x))]
    return torch.cat([made(lap)[:, -x.shape[1] :] for lap in rotated])


@pytest.mark.parametrize("members", [1, 2, 5])
def test_each_sequence_has_seen_one_lap(members) -> None:
    """With one tap, so that only the states cross from one sequence to the next."""
    made = mixer(d_conv=1)
    x = torch.randn(2, members, 4, 6, dtype=torch.float64, requires_grad=True)
    expected = torch.cat([lap_by_lap(made, one) for one in x])
    found = made(x.flatten(0, 1), members)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    names, parameters = zip(*made.named_parameters(), strict=True)
    ours = torch.autograd.grad((found * weights).sum(), [x, *parameters])
    theirs = torch.autograd.grad((expected * weights).sum(), [x, *parameters])
    for name, one, other in zip(("x", *names), ours, theirs, strict=True):
        torch.testing.assert_close(one, other, msg=name)


@pytest.mark.parametrize(("members", "length"), [(1, 5), (3, 4), (3, 1)])
def test_the_convolution_goes_round_the_loop(members, length) -> None:
    made = mixer(d_conv=4)
    inner = len(made.D)
    x = torch.randn(2 * members, length, inner, dtype=torch.float64)
    loops = x.unflatten(0, (2, members)).flatten(1, 2).mT  # [2, I, v · l]
    before = loops.repeat(1, 1, 3)[..., -3:]  # a short loop goes round more than once
    padded = torch.cat((before, loops), -1)
    expected = nn.functional.conv1d(padded, made.conv1d.weight, made.conv1d.bias, groups=inner)
    expected = expected.mT.unflatten(1, (members, length)).flatten(0, 1)
    torch.testing.assert_close(made._convolve(x, members), expected)


def test_what_comes_before() -> None:
    x = torch.arange(6.0).view(3, 2, 1)
    assert loop_past(x, 3, 3).squeeze(2).tolist() == [[3, 4, 5], [5, 0, 1], [1, 2, 3]]
    assert loop_past(x, 1, 3).squeeze(2).tolist() == [[1, 0, 1], [3, 2, 3], [5, 4, 5]]
    assert loop_past(x, 3, 0).shape == (3, 0, 1)
