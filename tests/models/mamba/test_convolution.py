"""The convolution of a mixer against torch's one-dimensional one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from panovlm.models.mamba.convolution import convolve


def arguments(length: int, number: int, dtype: torch.dtype) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(length)
    sizes = ((3, length + number - 1, 5), (5, 1, number), (5,))
    return [torch.randn(size, generator=g, dtype=dtype).requires_grad_() for size in sizes]


@pytest.mark.parametrize(("length", "number"), [(11, 4), (1, 3), (2, 6), (7, 1)])
def test_output_and_gradients_are_those_of_conv1d(length: int, number: int) -> None:
    ours = arguments(length, number, torch.float64)
    theirs = arguments(length, number, torch.float64)
    x, taps, bias = theirs
    expected = nn.functional.conv1d(x.transpose(1, 2), taps, bias, groups=5).transpose(1, 2)
    y = convolve(*ours)
    torch.testing.assert_close(y, expected)
    with torch.no_grad():
        assert torch.equal(convolve(*ours), y)
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.grad, other.grad)


def test_gradients_of_half_precision_stay_close() -> None:
    half = arguments(300, 4, torch.bfloat16)
    exact = [t.detach().double().requires_grad_() for t in half]
    for given in (half, exact):
        convolve(*given).sum().backward()
    for own, other in zip(half, exact, strict=True):
        assert own.grad.dtype == torch.bfloat16
        torch.testing.assert_close(own.grad.double(), other.grad, rtol=2**-8, atol=0.02)
