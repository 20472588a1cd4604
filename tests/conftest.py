"""Settings that every test shares."""

from __future__ import annotations

import os
import tempfile

from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Copies of Parquet files that datasets makes go with the tests.
_CACHE = tempfile.TemporaryDirectory(prefix="panovlm-tests-")
os.environ["HF_DATASETS_CACHE"] = _CACHE.name
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Everyone's runs look for new counter-examples; those of continuous integration are repeatable.
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")
