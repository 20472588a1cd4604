"""Sizes that no tensor can have are told as such; other errors are left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from panovlm.errors import ConfigError
from panovlm.models.sizes import possible_sizes

TOO_LARGE = {
    "rows times columns": lambda: nn.Linear(10**15, 10**15, device="meta"),
    "bytes": lambda: torch.empty(2**62, device="meta"),
    "one side": lambda: torch.empty(10**22, device="meta"),
    "memory": lambda: torch.empty(10**16),
}


@pytest.mark.parametrize("make", TOO_LARGE.values(), ids=TOO_LARGE)
def test_impossible_sizes(make) -> None:
    with pytest.raises(ConfigError, match="look for a size that is too large"), possible_sizes():
        make()


@pytest.mark.parametrize(
    "make", [lambda: torch.ones(2) @ torch.ones(3), lambda: torch.empty("a")], ids=["run", "type"]
)
def test_other_errors(make) -> None:
    with pytest.raises((RuntimeError, TypeError)) as raised, possible_sizes():
        make()
    assert not isinstance(raised.value, ConfigError)
