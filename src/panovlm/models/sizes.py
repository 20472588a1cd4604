"""Settings of which no model can be made."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from panovlm.errors import ConfigError

_REFUSALS = (
    "Storage size calculation overflowed",
    "Overflow when unpacking long",
    "can't allocate memory",
    "integer multiplication overflow",
)
"""How torch begins, or goes on, when it cannot make a tensor of some size."""

UNUSABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""How transformers' models answer values that they cannot use: no heads, an unknown activation."""


@contextmanager
def possible_sizes() -> Generator[None]:
    """Say of a model's settings what torch says of the sizes that they ask for.

    Raises:
        ConfigError: inside, a tensor was to be made that is larger than any can be, or than the
            memory.
    """
    try:
        yield
    except (RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        if not any(refusal in reason for refusal in _REFUSALS):
            raise
        raise ConfigError(
            "a tensor as large as the settings ask for cannot be made; look for a size that is too "
            f"large below models, lora or image_processing. torch said: {reason}"
        ) from error
