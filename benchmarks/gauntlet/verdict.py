"""How an attempt to open a checkpoint ends, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How an attempt ended."""

    RIGHT = "right"
    CLEAR = "clear error"
    UNCLEAR = "unclear error"
    WARNED = "warned but wrong"
    SILENT = "silently wrong"
    RAN_CODE = "ran code"
    NOT_APPLICABLE = "—"


class NotApplicableError(Exception):
    """This loader has nothing to do with this kind of checkpoint."""


@dataclass(frozen=True)
class Outcome:
    """How one contestant's attempt at one case ended.

    Attributes:
        told: the error's or the warnings' first words, or why it is not applicable.
        wrong_by: in what the opened model differs from the trained one.
    """

    verdict: Verdict
    told: str = ""
    wrong_by: str = ""
