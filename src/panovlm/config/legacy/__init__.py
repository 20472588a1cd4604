"""Configurations of the original system, translated to today's names once, at the border.

:func:`translate` reads what was written for the original system; :func:`original_run_mapping`
reads the ``config.yaml`` of one of its runs as that system understood it; and
:data:`ORIGINAL_DEFAULTS` are its defaults where they differ from today's.
"""

from __future__ import annotations

from panovlm.config.legacy.draft import Translated
from panovlm.config.legacy.names import OLD_MODEL_KEYS, translate
from panovlm.config.legacy.original import (
    ORIGINAL_DEFAULTS,
    fusion_text_limit,
    original_run_mapping,
    take_foreign_type,
)

__all__ = [
    "OLD_MODEL_KEYS",
    "ORIGINAL_DEFAULTS",
    "Translated",
    "fusion_text_limit",
    "original_run_mapping",
    "take_foreign_type",
    "translate",
]
