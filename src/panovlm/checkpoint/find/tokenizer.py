"""The tokenizer that belongs to a checkpoint."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from panovlm.checkpoint.formats import read_attachments
from panovlm.checkpoint.resolution import Resolution
from panovlm.checkpoint.settle.backbone_files import UNNAMED
from panovlm.errors import CheckpointError, PanoVLMError
from panovlm.models.language.tokenizer import (
    load_tokenizer,
    prepare_tokenizer,
    tokenizer_from_files,
)


def find_tokenizer(resolution: Resolution) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer that a checkpoint carries or names.

    Order: inside the file, the folder ``tokenizer`` beside it, ``models.tokenizer_name``, the
    language model's name. What the checkpoint carries is complete; a named one gets the tokens that
    training added. ``None`` (with a note in the resolution) when none of them can be read.

    Raises:
        CheckpointError: the carried tokenizer is damaged.
    """
    location = resolution.location
    files = read_attachments(location.checkpoint, resolution.weights)
    if files:
        return tokenizer_from_files(files)
    if location.tokenizer is not None:
        return load_tokenizer(str(location.tokenizer))
    models = resolution.config.models
    name = models.tokenizer_name or models.language_model_name
    if name.startswith(UNNAMED):
        resolution.notes.append("no tokenizer: the checkpoint neither carries nor names one")
        return None
    try:
        tokenizer = load_tokenizer(name)
    except PanoVLMError as error:
        resolution.notes.append(f"no tokenizer: {error}")
        return None
    grown = prepare_tokenizer(tokenizer)
    rows = resolution.inferred.fields.get("models.language_config.vocab_size")
    if grown and rows is not None and rows.value != len(tokenizer):
        raise CheckpointError(
            f"{resolution.path} has {rows.value} token embeddings, but the tokenizer of {name!r} "
            f"has {len(tokenizer)} tokens with those that training added; they do not belong "
            "together. Name the one that it was trained with: --set models.tokenizer_name=FOLDER."
        )
    return tokenizer
