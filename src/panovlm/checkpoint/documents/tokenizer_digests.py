"""What identifies the tokenizer that a checkpoint carries. No torch is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from panovlm.checkpoint.find.locate import TOKENIZER
from panovlm.checkpoint.formats import read_attachments
from panovlm.checkpoint.resolution import Resolution

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
)
"""What belongs to the tokenizer where it shares a folder with the weights."""


def tokenizer_digests(resolution: Resolution) -> dict[str, str]:
    """Return the SHA-256 of every tokenizer file that a checkpoint carries, by name."""
    files: Mapping[str, bytes] = read_attachments(
        resolution.path, resolution.weights, resolution.header
    )
    folder = resolution.location.tokenizer
    if not files and folder is not None:
        found = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
        own = folder.name == TOKENIZER
        listed = resolution.metadata.tokenizer if resolution.metadata else {}
        wanted = found if own else listed or TOKENIZER_FILES
        files = {name: path.read_bytes() for name, path in found.items() if name in wanted}
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if data}
