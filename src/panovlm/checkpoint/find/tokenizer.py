"""The tokenizer that belongs to a checkpoint."""

from __future__ import annotations

import hashlib

from transformers import PreTrainedTokenizerBase

from panovlm.checkpoint.documents.tokenizer_digests import TOKENIZER_FILES, tokenizer_digests
from panovlm.checkpoint.formats import read_attachments
from panovlm.checkpoint.resolution import Resolution
from panovlm.checkpoint.settle.backbone_files import UNNAMED
from panovlm.errors import CheckpointError, ConfigError, ContradictionError
from panovlm.models.language.tokenizer import (
    load_tokenizer,
    prepare_tokenizer,
    tokenizer_from_files,
)

_EMPTY = hashlib.sha256(b"").hexdigest()
"""Of a file that is empty, and as good as not there."""


def find_tokenizer(resolution: Resolution) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer that a checkpoint carries or names.

    Order: the one that the caller names, inside the file, the folder ``tokenizer`` beside it,
    ``models.tokenizer_name``, the language model's name. What the checkpoint carries is complete; a
    named one gets the tokens that training added. ``None`` (with a note in the resolution) when
    none of them can be read.

    Raises:
        CheckpointError: the carried tokenizer is damaged.
        ContradictionError: it is not the one that the checkpoint's document lists.
        ConfigError: the one that the caller names cannot be read.
    """
    if resolution.sources["models.tokenizer_name"].kind == "override":
        return _named(resolution)
    location = resolution.location
    files = read_attachments(location.checkpoint, resolution.weights, resolution.header)
    if files or location.tokenizer is not None:
        _require_as_listed(resolution)
        return tokenizer_from_files(files) if files else load_tokenizer(str(location.tokenizer))
    try:
        return _named(resolution)
    except ConfigError as error:
        resolution.notes.append(f"no tokenizer: {error}")
        return None


def _require_as_listed(resolution: Resolution) -> None:
    """Refuse a tokenizer with other files than those of which the document has the digests.

    It would read the same words as other tokens, and no shape shows that.

    Raises:
        ContradictionError: a file differs, is missing or was added.
    """
    document = resolution.embedded or resolution.metadata
    listed = document.tokenizer if document is not None else {}
    if not listed:
        return
    carried = tokenizer_digests(resolution)
    names = listed.keys() | (carried.keys() & set(TOKENIZER_FILES))
    wrong = sorted(n for n in names if carried.get(n, _EMPTY) != listed.get(n, _EMPTY))
    if wrong:
        folder = resolution.location.tokenizer
        raise ContradictionError(
            f"the tokenizer of {resolution.path} is not the one that it was saved with: "
            f"{', '.join(wrong)} differ from what its document lists. Put the right files back; or "
            "name the tokenizer that is meant, and it counts: --set models.tokenizer_name="
            f"{folder or 'FOLDER'}."
        )


def _named(resolution: Resolution) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer that is named.

    Raises:
        ConfigError: it cannot be read.
        CheckpointError: it is not the one that the model was trained with.
    """
    models = resolution.config.models
    name = models.tokenizer_name or models.language_model_name
    if name.startswith(UNNAMED):
        resolution.notes.append("no tokenizer: the checkpoint neither carries nor names one")
        return None
    tokenizer = load_tokenizer(name)
    grown = prepare_tokenizer(tokenizer)
    rows = resolution.inferred.fields.get("models.language_config.vocab_size")
    if grown and rows is not None and rows.value != len(tokenizer):
        raise CheckpointError(
            f"{resolution.path} has {rows.value} token embeddings, but the tokenizer of {name!r} "
            f"has {len(tokenizer)} tokens with those that training added; they do not belong "
            "together. Name the one that it was trained with: --set models.tokenizer_name=FOLDER."
        )
    return tokenizer
