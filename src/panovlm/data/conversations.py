r"""Conversations in JSON, as LLaVA and the chat interfaces write them.

A file is a list of objects, or has one object per line. Each object names one panorama (``image``,
or ``images`` with one entry) and holds its conversation, as LLaVA does::

    {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat is this?"},
                                         {"from": "gpt", "value": "A hall."}]}

or as ``messages`` of ``role`` and ``content``, where a content may be a list of parts of type
``text`` and ``image``. ``<image>`` is taken out of the first question: where the vision tokens
stand is the model's own setting. An empty list of messages is a panorama alone, for a stage that
reads no text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from panovlm.data.rows import Row, Rows, Turn, checked_url
from panovlm.errors import DataError
from panovlm.panorama.picture import Stored

IMAGE = "<image>"
"""LLaVA's placeholder of the picture."""

_USER, _ASSISTANT = "user", "assistant"
_ROLES = {"human": _USER, "user": _USER, "gpt": _ASSISTANT, "assistant": _ASSISTANT}
_FORMS = {"conversations": ("from", "value"), "messages": ("role", "content")}
"""Key of the conversation → keys of who speaks and what is said."""
_SEVERAL = (
    "a model reads one panorama per conversation; make a row of its own for each, or leave the "
    "row out"
)

Object = Mapping[str, Any]


def json_rows(file: Path, text: str) -> Rows:
    """Read a list of objects, or one object per line.

    Args:
        file: named in messages and sources: ``file.json[3]`` is the fourth object of a list,
            ``file.jsonl:4`` the one on the fourth line.
        text: its content.

    Yields:
        Rows, and errors in place of those that cannot be used.

    Raises:
        DataError: The file is a list that is no valid JSON, or holds nothing.
    """
    found = _listed(file, text) if text.lstrip().startswith("[") else _by_line(file, text)
    empty = True
    for source, value in found:
        empty = False
        yield value if isinstance(value, DataError) else _row(source, value)
    if empty:
        raise DataError(f"{file} has no rows; expected at least one conversation")


def _listed(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    value = parsed(str(file), text)
    if isinstance(value, DataError):
        raise value
    for number, entry in enumerate(value):
        yield f"{file}[{number}]", entry


def _by_line(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines: a JSON text may hold U+2028 and its kind.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            source = f"{file}:{number}"
            yield source, parsed(source, line)


def parsed(source: str, text: str) -> Any:
    """Return what a text says, or the error that tells why it says nothing."""
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except json.JSONDecodeError as error:
        place = f"{source}:{error.lineno}" if "\n" in text else source
        return DataError(
            f"{place}: no valid JSON ({error.msg}, column {error.colno}); expected one object per "
            "line, or a list of objects"
        )
    except _RepeatedKeyError as error:
        return DataError(f"{source}: key {error} stands twice in one object; keep one of them")
    except RecursionError:
        return DataError(f"{source}: it is nested too deeply for a conversation")


class _RepeatedKeyError(ValueError):
    """An object has a key twice; JSON does not say which one counts."""


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedKeyError(repr(key))
        found[key] = value
    return found


def _row(source: str, value: object) -> Row | DataError:
    try:
        if not isinstance(value, Mapping):
            raise DataError(f"{source}: expected an object with 'image' and 'conversations'")
        return conversation_row(source, cast("Object", value))
    except DataError as error:
        return error


def is_conversation(entry: Object) -> bool:
    """Tell whether an object holds messages, in one of the two forms."""
    return any(name in entry for name in _FORMS)


def conversation_row(source: str, entry: Object, picture: str | Stored | None = None) -> Row:
    """Return the row that an object says.

    Args:
        source: its place.
        entry: the object.
        picture: what it is about, where it need not name it; a name of its own is then a column.

    Raises:
        DataError: it cannot be used.
    """
    forms = [name for name in _FORMS if name in entry]
    if len(forms) != 1:
        said = "has both" if forms else "has neither"
        raise DataError(
            f"{source}: {said} 'conversations' {'and' if forms else 'nor'} 'messages', expected "
            f"one of them; its keys are {sorted(entry)}"
        )
    messages, inside = _messages(source, forms[0], entry[forms[0]])
    named = [*_named_images(source, entry), *inside]
    if not named and picture is None:
        raise DataError(f"{source}: names no image; expected its path under 'image'")
    if len(named) > 1:
        raise DataError(f"{source}: names {len(named)} images; {_SEVERAL}")
    rest = entry.keys() - ({"image", "images"} if picture is None else set()) - {*_FORMS}
    columns = {key: text_of(entry[key]) for key in sorted(rest)}
    url = picture or checked_url(source, named[0], "'image'")
    return Row(source, url, _turns(source, messages), columns)


def text_of(value: object) -> str:
    """Return a further value as a table's cell would have it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _named_images(source: str, entry: Object) -> Iterator[str]:
    """Yield the paths that the object itself names."""
    for key in ("image", "images"):
        value = entry.get(key)
        if value is None:
            continue
        for path in cast("list[object]", value) if isinstance(value, list) else [value]:
            if not isinstance(path, str):
                raise DataError(f"{source}: {key!r} holds {path!r}, expected the path of an image")
            yield path


def _messages(source: str, form: str, value: object) -> tuple[list[tuple[str, str]], list[str]]:
    """Return (role, text) of every message, and the images that stand in them."""
    if not isinstance(value, list):
        raise DataError(f"{source}: {form!r} is no list of messages")
    who, what = _FORMS[form]
    messages: list[tuple[str, str]] = []
    images: list[str] = []
    for number, message in enumerate(cast("list[object]", value)):
        place = f"{source}: {form}[{number}]"
        if not isinstance(message, Mapping):
            raise DataError(f"{place} is no object with {who!r} and {what!r}")
        fields = cast("Object", message)
        role = _role(place, fields.get(who))
        text, inside = _content(place, fields.get(what))
        if images and inside:
            raise DataError(f"{place} names a further image; {_SEVERAL}")
        if inside and (role != _USER or messages):
            raise DataError(f"{place} holds an image; it can only stand in the first question")
        images += inside
        messages.append((role, text))
    return messages, images


def _role(place: str, name: object) -> str:
    if name == "system":
        raise DataError(
            f"{place} is a system message; a model has one for all conversations: set "
            "training.system_msg and take it out of the rows"
        )
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise DataError(f"{place} is said by {name!r}, expected one of {', '.join(_ROLES)}")
    return role


def _content(place: str, value: object) -> tuple[str, list[str]]:
    """Return the text of a message, and the images among its parts."""
    parts = cast("Sequence[object]", value) if isinstance(value, list) else [value]
    texts: list[str] = []
    images: list[str] = []
    for part in parts:
        match part:
            case str() | {"type": "text", "text": str()}:
                texts.append(part if isinstance(part, str) else cast("Object", part)["text"])
            case {"type": "image", "image": str(path)} | {"type": "image", "path": str(path)}:
                images.append(path)
            case {"type": "image"}:  # the object itself names it
                texts.append(f"{IMAGE}\n")
            case _:
                raise DataError(f"{place} holds {part!r}, expected text")
    text = "".join(texts)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place} holds half a character (a lone surrogate)") from error
    return text, images


def _turns(source: str, messages: Sequence[tuple[str, str]]) -> tuple[Turn, ...]:
    """Pair questions with answers."""
    expected = [(_USER, _ASSISTANT)[number % 2] for number in range(len(messages))]
    for number, ((role, _), wanted) in enumerate(zip(messages, expected, strict=True)):
        if role != wanted:
            raise DataError(
                f"{source}: message {number} is the {role}'s, expected the {wanted}'s; questions "
                "and answers take turns, beginning with a question"
            )
    if len(messages) % 2:
        raise DataError(f"{source}: the conversation has no answer to its last question")
    if not messages:
        return ()
    texts = [text for _, text in messages]
    marks = sum(text.count(IMAGE) for text in texts)
    if marks > 1:
        raise DataError(f"{source}: {IMAGE} stands {marks} times; {_SEVERAL}")
    if marks and IMAGE not in texts[0]:
        raise DataError(f"{source}: {IMAGE} does not stand in the first question")
    if marks:
        texts[0] = texts[0].replace(IMAGE, "").strip()
    return tuple(zip(texts[::2], texts[1::2], strict=True))
