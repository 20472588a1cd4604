"""Answers are checked against the ground truth by reading the question."""

from __future__ import annotations

import re
from collections import Counter
from random import Random

from panovlm.data.synthetic.questions import Question, draw_look, draw_questions
from panovlm.data.synthetic.scene import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    Scene,
    draw_alike,
    draw_scene,
)

NUMBERS = {"three": 3, "four": 4, "five": 5}


def ask(index: int, count: int = 8) -> tuple[Scene, list[Question]]:
    rng = Random(f"questions/{index}")
    scene = draw_scene(rng)
    return scene, draw_questions(scene, count, rng)


ASKED = [ask(index) for index in range(1200)]


def near(scene: Scene, words: str) -> list[tuple[str, str]]:
    """Solids within 22.5 degrees of a direction given in words."""
    yaw = 45 * DIRECTIONS.index(words)
    return [
        (s.colour, s.shape) for s in scene.solids if abs((s.yaw - yaw + 180) % 360 - 180) <= 22.5
    ]


def check(scene: Scene, question: Question) -> None:
    everything = [(s.colour, s.shape) for s in scene.solids]
    if found := re.fullmatch(r"What (colour|shape) is the object (.+)\?", question.text):
        [(colour, shape)] = near(scene, found[2])
        assert question.kind == found[1]
        assert question.answer == (colour if found[1] == "colour" else shape)
    elif found := re.fullmatch(r"Where is the (\w+) (\w+)\?", question.text):
        assert near(scene, question.answer) == [(found[1], found[2])]
        assert everything.count((found[1], found[2])) == 1
    elif found := re.fullmatch(r"Is there an? (\w+) (\w+)\?", question.text):
        assert question.answer == ("yes" if (found[1], found[2]) in everything else "no")
        assert (question.solid is None) == (question.answer == "no")
    elif question.kind == "count":
        assert NUMBERS[question.answer] == len(everything)
    else:
        assert question.kind == "caption"
        listed = re.findall(r"[Aa]n? (\w+) (\w+) is ((?:\w+ )*\w+)", question.answer)
        assert [(colour, shape) for colour, shape, _ in listed] == everything
        for colour, shape, where in listed:
            assert (colour, shape) in near(scene, where.removesuffix(" and"))
    if question.solid is not None:
        assert question.solid in scene.solids


def test_every_answer_follows_from_the_scene() -> None:
    for scene, questions in ASKED:
        for question in questions:
            check(scene, question)


def test_questions_of_a_scene_differ() -> None:
    for _, questions in ASKED:
        assert len(questions) == 8
        assert len({(q.kind, q.text) for q in questions}) >= 7  # two absent solids may coincide


def test_all_questions_when_more_are_asked_for() -> None:
    scene, questions = ask(0, count=100)
    assert len(questions) == 4 * len(scene.solids) + 2


def share(answers: Counter[str]) -> float:
    return max(answers.values()) / min(answers.values())


def test_answers_are_balanced() -> None:
    by_kind: dict[str, Counter[str]] = {}
    for _, questions in ASKED:
        for question in questions:
            by_kind.setdefault(question.kind, Counter())[question.answer] += 1
    assert set(by_kind["where"]) == set(DIRECTIONS)
    assert set(by_kind["shape"]) == set(SHAPES)
    assert share(by_kind["where"]) < 1.3
    assert share(by_kind["colour"]) < 1.3
    assert share(by_kind["shape"]) < 1.2
    assert share(by_kind["exists"]) < 1.2
    assert share(by_kind["count"]) < 1.7
    assert by_kind["caption"].total() < 0.5 * by_kind["shape"].total()


def test_the_vocabulary_is_small() -> None:
    texts = [t for _, questions in ASKED for q in questions for t in (q.text, q.answer)]
    assert len({word for text in texts for word in re.findall(r"\w+|\W", text)}) < 75


def test_a_look_at_alike_solids() -> None:
    answers: Counter[str] = Counter()
    for number in range(60):
        rng = Random(f"alike/{number}")
        scene = draw_alike(rng)
        assert len(scene.solids) == len(DIRECTIONS)
        assert len({(solid.colour, solid.shape) for solid in scene.solids}) == 1
        colour, shape = draw_look(scene, rng)
        assert (colour.kind, shape.kind) == ("colour", "shape")
        assert (colour.answer, shape.answer) == (scene.solids[0].colour, scene.solids[0].shape)
        answers.update((colour.answer, shape.answer))
    assert set(answers) == {*COLOURS, *SHAPES}


def test_only_the_kinds_that_are_wanted() -> None:
    rng = Random("kinds")
    questions = draw_questions(draw_scene(rng), 100, rng, ("count", "colour"))
    assert {question.kind for question in questions} == {"count", "colour"}
