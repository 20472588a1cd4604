"""The model hub, asked once whether it answers.

Libraries ask it for every file of a model by itself, and without network each of them waits through
several tries: over a minute for a tokenizer.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import (
    get_hf_file_metadata,
    hf_hub_url,
    is_offline_mode,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import httpx

_DESCRIBED_BY = ("config.json", "tokenizer_config.json")


def place_of(name: str) -> str:
    """Return where a model of the hub is read from: its name, or its folder in the local cache.

    The hub is asked once, for at most ``HF_HUB_ETAG_TIMEOUT`` seconds (10 where that is not set).
    What is wrong with an answer is told by whoever reads the model.

    Args:
        name: hub id.

    Raises:
        LocalEntryNotFoundError: the hub does not answer, and the cache has nothing of that name.
    """
    silence = unanswered(name)
    if silence is None:
        return name
    for file in _DESCRIBED_BY:
        found = try_to_load_from_cache(name, file)
        if isinstance(found, str):
            return str(Path(found).parent)
    raise LocalEntryNotFoundError(silence)


def unanswered(name: str) -> str | None:
    """Return why the hub says nothing of a name; ``None`` where it does, or must not be asked."""
    if is_offline_mode():
        return None
    try:
        get_hf_file_metadata(hf_hub_url(name, _DESCRIBED_BY[0]))
    except (HfHubHTTPError, HFValidationError):
        return None
    except httpx.TransportError as error:
        return f"the hub does not answer ({error}); it was asked once."
    return None
