"""Directions in texts, as the reader of a panorama has them, turned with the panorama.

Only what is certain is rewritten: the phrases below, which name one of eight directions around the
reader. A text that holds any other sign of a direction has a fault, and is not touched.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

from panovlm.errors import DataError

_SIDES = (
    "to your {}",
    "on your {}",
    "at your {}",
    "to the {} of you",
    "on your {} side",
    "on your {} hand side",
    "on your {}-hand side",
)
_AHEAD, _BEHIND = "in front of you", "behind you"


def _ring(side: str) -> tuple[str, ...]:
    """Return the eight directions, clockwise from the front, with one way to say the sides."""
    right, left = side.format("right"), side.format("left")
    front = (_AHEAD, f"ahead and {right}", right, f"behind and {right}")
    return (*front, _BEHIND, f"behind and {left}", left, f"ahead and {left}")


_RINGS = tuple(map(_ring, _SIDES))
_PLACES = {
    "ahead of you": (0, 0),
    "straight ahead": (0, 0),
    **{
        f"in front and {r[s].removeprefix('ahead and ')}": (n, s)
        for n, r in enumerate(_RINGS)
        for s in (1, 7)
    },
    **{
        phrase: (n, s)
        for n, ring in reversed([*enumerate(_RINGS)])
        for s, phrase in enumerate(ring)
    },
}
"""Phrase → (ring, place in it)."""


def _words(*words: str) -> str:
    return "|".join(
        sorted((re.escape(w).replace(r"\ ", r"\s+") for w in words), key=len, reverse=True)
    )


_PHRASE = re.compile(rf"(?<![\w-])(?:{_words(*_PLACES)})(?![\w-])", re.IGNORECASE)

_FOLLOWS = re.compile(
    r"\s*(?:$|[.,;:!?)\"'\u2019\u201d\u2014\u2013]|(?:a|an|the|this|that|these|those|is|are|was|were|there|and|or|"
    r"but|with|as|at|in|on|by|near|next|while|which|where|when|has|have|can|you|we|i|it|stands?|"
    r"sits?|lies?|hangs?|if|than)\b)",
    re.IGNORECASE,
)
"""What may stand behind a phrase that ends with a side; a noun would belong to the side."""
_VAGUE = re.compile(
    r"\b(?:slightly|almost|nearly|just|partly|partially|mostly|somewhat|far|further|farther|more|"
    r"bit|little|half|halfway|way|quite|roughly|diagonally|obliquely)\s+$",
    re.IGNORECASE,
)
"""What makes a phrase mean a direction beside the one that it names."""
_JOINED = re.compile(r"\s*(?:,|/|and|or|but|,\s*(?:and|or|but))\s*", re.IGNORECASE)
"""What makes one direction, or a list, of two phrases that it stands between."""

_SIGNS = re.compile(
    r"\b(?:left|right|(?:left|right)(?:most|wards?|hand|handed)|front|frontal|behind|ahead|back|"
    r"backwards?|forwards?|rear|sideways|(?:across\s+from|opposite|before)\s+(?:you|me|us)|"
    r"(?:(?:north|south)-?)?(?:east|west)(?:ern|wards?)?|(?:north|south)(?:ern|wards?)?|"
    r"(?:anti|counter)?-?clockwise|degrees?|deg|radians?|yaw|azimuth|longitude|heading|bearing|"
    r"o['\u2019]?clock|(?:cent(?:re|er|ral)|middle|edges?|borders?|corners?|sides?|halves|half)\s+of\s+(?:the|this)\s+"
    r"(?:\w+\s+)?(?:image|picture|panorama|photo|photograph|view|frame|scene)|seam|"
    r"gauche|droite|devant|derri[eè]re|links|rechts|vorne|hinten|hinter|izquierda|derecha|delante|"
    r"detr[aá]s|sinistra|destra|davanti|dietro|esquerda|direita)\b"
    r"|°|[\[(<]\s*-?\d+(?:\.\d+)?\s*,\s*-?\d",
    re.IGNORECASE,
)
"""Signs of a direction, or of a place in the picture, that turns with the panorama."""


def fault(text: str, turns: int) -> str:
    """Say why a text cannot be turned with its panorama; empty: it can.

    Args:
        text: English; a text in another script cannot be judged.
        turns: equally large turns that make a whole one, such as 4 for 90 degrees.
    """
    foreign = next((c for c in text if c.isalpha() and "LATIN" not in unicodedata.name(c, "")), "")
    if foreign:
        return (
            f"{foreign!r} is not of the Latin script, so that its directions cannot be recognised"
        )
    sign = _SIGNS.search(_PHRASE.sub(" ", text))
    if sign:
        return f"{sign[0]!r} may name a direction, but is none of the phrases that can be turned"
    found = [*_PHRASE.finditer(text)]
    if found and 8 % turns:
        return f"{found[0][0]!r} can be turned by multiples of 45 degrees only (2, 4 or 8 turns)"
    for match in found:
        ends = match[0].lower().endswith(("left", "right", "side"))
        if ends and not _FOLLOWS.match(text, match.end()):
            return f"{match[0]!r} goes on in a way that cannot be turned"
        if _VAGUE.search(text, 0, match.start()):
            return f"{match[0]!r} is qualified by the word before it"
    for one, other in pairwise(found):
        if turns == 8 and _JOINED.fullmatch(text, one.end(), other.start()):
            return f"{one[0]!r} and {other[0]!r} may mean one direction together"
    return ""


def turned(text: str, number: int, turns: int) -> str:
    """Return a text as it is about a panorama that was turned.

    Args:
        text: about the panorama as it was.
        number: turns that were made, clockwise: what was in front is to the right after one of 4.
        turns: turns that make a whole one.

    Raises:
        DataError: the text cannot be turned (see :func:`fault`).
    """
    why = fault(text, turns)
    if why:
        raise DataError(f"{text!r}: {why}")

    def rewrite(match: re.Match[str]) -> str:
        ring, place = _PLACES[" ".join(match[0].lower().split())]
        phrase = _RINGS[ring][(place + number * 8 // turns) % 8]
        return phrase[0].upper() + phrase[1:] if match[0][0].isupper() else phrase

    return _PHRASE.sub(rewrite, text) if number % turns else text
