"""Puts a case to the contestants and says how each attempt ended."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.gauntlet.case import Case, Made
from benchmarks.gauntlet.contestants import OURS, Opener
from benchmarks.gauntlet.observe import observe
from benchmarks.gauntlet.stock import Stock
from benchmarks.gauntlet.verdict import NotApplicableError, Outcome, Verdict

from panovlm.errors import PanoVLMError

LOGGERS = ("", "transformers", "peft", "lightning", "lightning.pytorch", "accelerate")
DEEP_INSIDE = (AttributeError, TypeError, IndexError, NameError, AssertionError, RecursionError)
"""Errors of a program that has lost its way, which tell nothing about a checkpoint."""
SHOWN = 400


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def listening() -> Generator[list[str]]:
    """Collect what is warned of, by whatever way, instead of printing it."""
    collector = _Collector()
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for logger in loggers:
            logger.handlers, logger.propagate = [collector], False
        try:
            yield collector.messages
        finally:
            for logger, (handlers, propagate) in zip(loggers, before, strict=True):
                logger.handlers, logger.propagate = handlers, propagate
            unrelated = (DeprecationWarning, FutureWarning, ResourceWarning)
            collector.messages += [
                str(one.message) for one in caught if not issubclass(one.category, unrelated)
            ]


def attempt(stock: Stock, made: Made, opener: Opener) -> Outcome:
    """Let one contestant open a checkpoint, and judge what comes of it."""
    try:
        with listening() as told:
            model = opener(made)
    except NotApplicableError as reason:
        return Outcome(Verdict.NOT_APPLICABLE, str(reason))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - torch's CheckpointException is no Exception
        return _ran_code(made) or Outcome(_kind(error, opener), _words(error))
    if ran := _ran_code(made):
        return ran
    try:
        with listening():
            wrong_by = stock.truth(made.model).differs(observe(model, made.model.tokenizer))
    except Exception as error:  # noqa: BLE001 - it opened, but cannot be used
        return Outcome(Verdict.UNCLEAR, f"opened, then: {_words(error)}")
    if not wrong_by:
        return Outcome(Verdict.RIGHT, _shortened("; ".join(told)))
    verdict = Verdict.WARNED if told else Verdict.SILENT
    return Outcome(verdict, _shortened("; ".join(told)), wrong_by)


def run(stock: Stock, case: Case, contestants: Mapping[str, Opener]) -> dict[str, Outcome]:
    """Write a case anew for each contestant, so that none finds what another one left."""
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(dir=stock.folder) as name:
        for number, (contestant, opener) in enumerate(contestants.items()):
            folder = Path(name) / str(number)
            folder.mkdir()
            outcomes[contestant] = attempt(stock, case.make(stock, folder), opener)
    return outcomes


def faults(case: Case, outcomes: Mapping[str, Outcome]) -> list[str]:
    """Say where PanoVLM broke its promise: right or a clear error, nothing valid refused."""
    found: list[str] = []
    for name in OURS:
        verdict = outcomes[name].verdict if name in outcomes else Verdict.RIGHT
        # Without strict a value that nobody recorded may be wrong, but never without a word.
        good = {Verdict.RIGHT, Verdict.CLEAR} | ({Verdict.WARNED} if name != "PanoVLM" else set())
        if verdict not in good or (case.valid and verdict != Verdict.RIGHT):
            found.append(f"{case.group}: {case.name}: {name}: {outcomes[name]}")
    return found


def _ran_code(made: Made) -> Outcome | None:
    ran = made.canary is not None and made.canary.exists()
    return Outcome(Verdict.RAN_CODE) if ran else None


def _kind(error: BaseException, opener: Opener) -> Verdict:
    ours = opener in OURS.values()
    clear = isinstance(error, PanoVLMError) if ours else not isinstance(error, DEEP_INSIDE)
    return Verdict.CLEAR if clear else Verdict.UNCLEAR


def _words(error: BaseException) -> str:
    return _shortened(f"{type(error).__name__}: {error}")


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."
