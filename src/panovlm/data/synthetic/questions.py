"""Questions about a synthetic scene, each with one answer that follows from the ground truth.

Answers are a colour, a shape, a direction, a number word, yes or no; only the caption is longer.
The whole vocabulary is about seventy words, so a small word tokenizer holds it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from random import Random
from typing import get_args

from panovlm.config.schema import Kind
from panovlm.data.synthetic.scene import COLOURS, SHAPES, Scene, Solid

KINDS: tuple[Kind, ...] = get_args(Kind)

_WEIGHTS: dict[Kind, float] = {
    "colour": 3.0,
    "where": 3.0,
    "shape": 1.5,
    "exists": 1.0,
    "count": 1.0,
    "caption": 0.6,
}
"""How readily a question of each kind is drawn; see :func:`draw_questions`."""

_NUMBERS = ("zero", "one", "two", "three", "four", "five")


@dataclass(frozen=True)
class Question:
    """A question about a scene."""

    kind: Kind
    text: str
    answer: str
    solid: Solid | None = None
    """The solid that it is about, if it is about one."""


def draw_questions(
    scene: Scene, count: int, rng: Random, kinds: Collection[Kind] = KINDS
) -> list[Question]:
    """Draw up to ``count`` different questions about a scene, in random order.

    Questions are drawn without replacement, heavier kinds first by the method of Efraimidis and
    Spirakis (2006): the largest ``u ** (1 / weight)`` win. A scene of n solids has 4 n + 2
    different questions; with a larger ``count`` all of them are returned.

    Args:
        scene: What the questions are about.
        count: Most questions.
        rng: Source of chance.
        kinds: Kinds to ask.
    """
    pool = _about_scene(scene)
    for solid in scene.solids:
        pool += _about_solid(solid)
        pool.append(_exists(scene, solid, rng))
    pool = [question for question in pool if question.kind in kinds]
    ranked = sorted(pool, key=lambda q: rng.random() ** (1 / _weight(q, scene)), reverse=True)
    chosen = ranked[:count]
    rng.shuffle(chosen)
    return chosen


def draw_look(scene: Scene, rng: Random) -> list[Question]:
    """Ask for the colour and for the shape of one solid, drawn at random."""
    solid = rng.choice(scene.solids)
    return [question for question in _about_solid(solid) if question.kind in ("colour", "shape")]


def _weight(question: Question, scene: Scene) -> float:
    """Weigh a question about the whole scene up where it competes with many about solids.

    Otherwise scenes of three solids would be counted and described more often than those of five.
    """
    weight = _WEIGHTS[question.kind]
    return weight * len(scene.solids) / 4 if question.kind in ("count", "caption") else weight


def _about_solid(solid: Solid) -> list[Question]:
    """Return the questions about one solid; its sector and its colour are unique in the scene."""
    where = solid.direction
    return [
        Question("colour", f"What colour is the object {where}?", solid.colour, solid),
        Question("shape", f"What shape is the object {where}?", solid.shape, solid),
        Question("where", f"Where is the {solid.colour} {solid.shape}?", where, solid),
    ]


def _exists(scene: Scene, solid: Solid, rng: Random) -> Question:
    """Ask for a solid: as often for one that is there as for one that is not.

    Half of the absent ones have the colour of this solid and another shape, so that knowing the
    colours of a scene does not give the answer away.
    """
    if rng.random() < 0.5:
        return _exists_question(solid.colour, solid.shape, "yes", solid)
    if rng.random() < 0.5:
        shape = rng.choice([shape for shape in SHAPES if shape != solid.shape])
        return _exists_question(solid.colour, shape, "no", None)
    present = {other.colour for other in scene.solids}
    colour = rng.choice([colour for colour in sorted(COLOURS) if colour not in present])
    return _exists_question(colour, rng.choice(SHAPES), "no", None)


def _exists_question(colour: str, shape: str, answer: str, solid: Solid | None) -> Question:
    return Question("exists", f"Is there {_with_article(colour, shape)}?", answer, solid)


def _about_scene(scene: Scene) -> list[Question]:
    number = _NUMBERS[len(scene.solids)]
    places = [
        f"{_with_article(solid.colour, solid.shape)} is {solid.direction}" for solid in scene.solids
    ]
    listed = ", and ".join(filter(None, (", ".join(places[:-1]), places[-1])))
    counted = "is one object" if len(places) == 1 else f"are {number} objects"
    caption = f"There {counted} in the room. {listed[0].upper()}{listed[1:]}."
    return [
        Question("count", "How many objects are there?", number),
        Question("caption", "Describe the scene.", caption),
    ]


def _with_article(colour: str, shape: str) -> str:
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}"
