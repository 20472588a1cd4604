"""Tokenizers: special tokens, loading, a word tokenizer for small models, and storage as bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from panovlm.errors import CheckpointError, ConfigError
from panovlm.models.language.pretrained import reading

VISION_TOKEN = "<|vision|>"  # noqa: S105 - a token of text
"""Placeholder in a text; the vision tokens of the sample take its place."""
END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Jinja template of the ChatML conversation format, without a built-in system message."""

_UNKNOWN = "<unk>"
_WORD_SPECIALS = (_UNKNOWN, END_OF_TEXT, "<|im_start|>", END_OF_TURN)
_ROLES = ("system", "user", "assistant")
# Joiner annotation as in OpenNMT's tokenizer, on punctuation marks only: a mark that begins or
# ends with it stands without white space next to what comes before or after.
_JOINER = "￭"
_GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
# What transformers remembers about the place a tokenizer came from; it would be saved with it.
_ORIGIN = ("name_or_path", "is_local", "local_files_only")


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Give ``tokenizer`` the special tokens that PanoVLM needs, in place.

    Without a pad token, the end token pads (``<|endoftext|>`` does both where there is no end
    token either). Then ``<|vision|>`` is added, and ``<|endoftext|>`` unless it is the end token.

    Returns:
        Whether the vocabulary grew. Then, and only then, the embeddings of the language model
        must be resized to ``len(tokenizer)``. A prepared tokenizer is left as it is.
    """
    size = len(tokenizer)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            tokenizer.add_special_tokens({"eos_token": END_OF_TEXT})
        tokenizer.pad_token = tokenizer.eos_token
    wanted = [VISION_TOKEN] + [END_OF_TEXT] * (tokenizer.eos_token != END_OF_TEXT)
    fresh = [token for token in wanted if token not in tokenizer.all_special_tokens]
    if fresh:
        # By default this call would strike the special tokens already listed off the list.
        tokenizer.add_special_tokens(
            {"extra_special_tokens": fresh}, replace_extra_special_tokens=False
        )
    return len(tokenizer) > size


def vision_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of ``<|vision|>``.

    Raises:
        ConfigError: the tokenizer was not prepared.
    """
    found = tokenizer.get_vocab().get(VISION_TOKEN)
    if found is None:
        raise ConfigError(
            f"the tokenizer {tokenizer.name_or_path!r} has no token {VISION_TOKEN}; "
            "call prepare_tokenizer on it first."
        )
    return found


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Read a tokenizer from a folder or the hub; code shipped with it is never run.

    Raises:
        ConfigError: it is missing or cannot be read.
    """
    with reading("tokenizer", name_or_path, "models.tokenizer_name") as source:
        return _from_pretrained(source)


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Make a tokenizer whose tokens are the words and punctuation marks of ``texts``.

    Text is split at white space and around every character that is no letter, digit or
    underscore; case is kept. A word is one token wherever it stands; a mark without white space
    beside it carries ``￭`` on that side, so decoding gives back the text with its white space
    collapsed. Ids: the special tokens, then the pieces in code point order, whatever the order of
    ``texts``. What ``texts`` lack becomes ``<unk>``, so the system message belongs to them.

    Returns:
        A tokenizer with a ChatML template, end token ``<|im_end|>`` and pad token
        ``<|endoftext|>``; :func:`prepare_tokenizer` adds the vision placeholder.
    """
    empty = _word_splitter(_WORD_SPECIALS)
    words = {piece for text in (*_ROLES, *texts) for piece in _pieces(empty, text)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_word_splitter([*_WORD_SPECIALS, *sorted(words)]),
        unk_token=_UNKNOWN,
        pad_token=END_OF_TEXT,
        eos_token=END_OF_TURN,
        extra_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = CHATML_TEMPLATE
    return tokenizer


def tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """Return the files that ``save_pretrained`` writes, by name (with ``/`` for sub-folders)."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        # Left behind by an earlier call, these would be saved and cut texts after loading.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def tokenizer_from_files(files: Mapping[str, bytes]) -> PreTrainedTokenizerBase:
    """Rebuild a tokenizer from :func:`tokenizer_files`, without network or foreign code.

    Raises:
        CheckpointError: a name points outside the tokenizer's folder, a file is missing, or the
            content is damaged.
    """
    if "tokenizer_config.json" not in files:
        raise CheckpointError(
            f"the stored tokenizer lacks tokenizer_config.json; it holds {sorted(files)}. "
            "Set models.tokenizer_name to a folder or a hub id instead."
        )
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            path = Path(name) / _checked_name(file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            return _from_pretrained(name)
        except Exception as error:
            raise CheckpointError(
                f"the stored tokenizer ({', '.join(sorted(files))}) is damaged: {error}. "
                "Set models.tokenizer_name to a folder or a hub id instead."
            ) from error


def _from_pretrained(source: str) -> PreTrainedTokenizerBase:
    """Read a tokenizer and forget where it came from, so that it is saved as it was read.

    A folder that names the generic class means exactly its ``tokenizer.json``. transformers 5 would
    put the class of the language model's family over it, which splits texts in its own way.

    Raises:
        ConfigError: it has no words.
    """
    named = get_tokenizer_config(source, trust_remote_code=False).get("tokenizer_class")
    reader = PreTrainedTokenizerFast if named in _GENERIC_CLASSES else AutoTokenizer
    tokenizer = cast(
        "PreTrainedTokenizerBase", reader.from_pretrained(source, trust_remote_code=False)
    )
    for key in _ORIGIN:
        tokenizer.init_kwargs.pop(key, None)
    read = cast(Any, tokenizer)
    if not read.get_vocab().keys() - read.get_added_vocab().keys():
        # transformers makes one without words where a model's files lack its tokenizer.
        raise ConfigError(
            f"{source!r} has no vocabulary, only {len(tokenizer)} special token(s). Put the "
            "tokenizer's files there (tokenizer.json), or set models.tokenizer_name to a folder."
        )
    return tokenizer


def _checked_name(name: str) -> str:
    """Return ``name`` if it stays inside the folder it is written to."""
    path = PurePosixPath(name)
    strange = path.is_absolute() or not path.parts or ".." in path.parts
    if strange or any(char in name for char in "\\:\0"):
        raise CheckpointError(
            f"the stored tokenizer has a file called {name!r}; plain relative names such as "
            "'tokenizer.json' were expected. The checkpoint is damaged or was tampered with."
        )
    return name


def _word_splitter(vocabulary: Iterable[str]) -> Tokenizer:
    """Return the backend of a word tokenizer with this vocabulary, in this order of ids."""
    ids = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=_UNKNOWN))
    mark = rf"[^\w\s{_JOINER}]"
    # A joiner goes before a mark that touches something, and between a mark and a word.
    touching = Regex(rf"(?<=\S)(?={mark})|(?<={mark})(?=\w)")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(_JOINER, ""), normalizers.Replace(touching, _JOINER)]
    )
    marks = Regex(rf"{_JOINER}?{mark}({_JOINER}(?=\w))?")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(marks, "isolated")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex("^"), " "),
            decoders.Fuse(),
            decoders.Replace(Regex(f" ?{_JOINER} ?"), ""),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def _pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    """Split ``text`` as the backend does before it looks pieces up."""
    assert tokenizer.normalizer is not None
    assert tokenizer.pre_tokenizer is not None
    normal = tokenizer.normalizer.normalize_str(text)
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]
