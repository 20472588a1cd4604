"""Reading from a local folder or the Hugging Face hub, with errors that say what is missing."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import is_offline_mode

from panovlm.errors import ConfigError, PanoVLMError
from panovlm.models.hub import place_of


@contextmanager
def reading(what: str, name: str, option: str) -> Generator[str]:
    """Yield the location of ``name`` for a ``from_pretrained`` call and explain its failure.

    transformers answers a missing folder with a remark on the form of repository ids, so
    folders are looked at here first.

    Args:
        what: thing to be read, for the message, such as ``"tokenizer"``.
        name: folder or hub id.
        option: setting that names it, such as ``"models.tokenizer_name"``.

    Raises:
        ConfigError: the folder does not exist, or what it holds (or what the hub answers)
            cannot be read.
    """
    if not name:
        raise ConfigError(f"no {what} is named; set {option} to a folder or a hub id.")
    folder = Path(name).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"the {what} {name!r} is a file; {option} needs a folder or a hub id.")
    if not folder.is_dir() and (name.startswith(("/", ".", "~")) or name.count("/") > 1):
        raise ConfigError(f"the {what} folder {name!r} does not exist; correct {option}.")
    try:
        yield str(folder) if folder.is_dir() else place_of(name)
    except PanoVLMError:
        raise
    except Exception as error:
        if folder.is_dir():
            where = "the folder holds none that can be read"
            mend = f"complete the folder or correct {option}"
        elif is_offline_mode():
            where = (
                "there is no such folder, it is not in the local cache, and HF_HUB_OFFLINE is set"
            )
            mend = f"set {option} to a local folder, or unset HF_HUB_OFFLINE"
        else:
            where = "there is no such folder, and neither the local cache nor the hub gives it"
            mend = f"correct {option}, or download it and name the folder"
        raise ConfigError(
            f"cannot read the {what} {name!r}: {where}; {mend}. The library said: {brief(error)}"
        ) from error


def brief(error: BaseException) -> str:
    """Return a library's error on one line, without the long lists some of them carry."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."
