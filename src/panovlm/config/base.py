"""Base class of all settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """Frozen settings: unknown keys are refused, and a changed copy is validated again.

    pydantic's own ``model_copy(update=...)`` skips validation. A checkpoint's architecture was
    once switched that way while the sizes of the old architecture stayed behind, so here a copy
    with changes always goes through the validators.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy; with ``update`` the whole of it is validated anew."""
        if not update:
            return super().model_copy(deep=deep)
        return type(self).model_validate({**self.model_dump(), **update})
