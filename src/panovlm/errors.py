"""The one exception family of PanoVLM.

A message says what was wrong, where, what was expected, and how to mend it. The command line
prints it as it is, without a traceback, and exits with status 2.
"""

from __future__ import annotations


class PanoVLMError(Exception):
    """Base of every error that PanoVLM raises on purpose."""


class ConfigError(PanoVLMError):
    """A setting is unknown, of the wrong type, or contradicts another setting."""


class DataError(PanoVLMError):
    """A data file, a row or an image cannot be used."""


class CheckpointError(PanoVLMError):
    """A checkpoint cannot be opened, described or loaded."""


class ContradictionError(CheckpointError):
    """Two sources describe the same checkpoint differently, so no model can satisfy both."""


class AssumedSettingsWarning(UserWarning):
    """A checkpoint was loaded with settings that neither its metadata nor its weights tell."""


class MissingDependencyError(PanoVLMError):
    """An optional package or program is needed and not installed."""
