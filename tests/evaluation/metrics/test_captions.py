from __future__ import annotations

import math
import random
import sys
from collections import Counter

import pytest

from panovlm.evaluation.metrics.captions import bleu4, cider, rouge_l
from panovlm.evaluation.metrics.scores import NotComputed, Result, Score

# At most three letters, so that the stemmer of ROUGE-L leaves them alone.
_WORDS = ["a", "red", "big", "sun", "on", "the", "sea", "and", "one", "tan", "dog", "by", "elm"]


def _captions(seed: int, count: int) -> tuple[list[str], list[str]]:
    """References, and predictions that keep about two thirds of their words."""
    rng = random.Random(seed)
    references = [rng.choices(_WORDS, k=rng.randint(4, 15)) for _ in range(count)]
    predictions = [
        [word if rng.random() < 0.65 else rng.choice(_WORDS) for word in reference]
        + rng.choices(_WORDS, k=rng.randint(0, 4))
        for reference in references
    ]
    return [" ".join(words) for words in predictions], [" ".join(words) for words in references]


def _ngrams(text: str, n: int) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _bleu(predictions: list[str], references: list[str]) -> float:
    """Papineni et al. 2002; an order without a match counts 1/2, 1/4, ... matches."""
    logs, smooth = [], 1.0
    for n in range(1, 5):
        pairs = [
            (_ngrams(p, n), _ngrams(r, n)) for p, r in zip(predictions, references, strict=True)
        ]
        matches: float = sum((p & r).total() for p, r in pairs)
        if not matches:
            smooth *= 2
            matches = 1 / smooth
        logs.append(math.log(matches / sum(p.total() for p, _ in pairs)))
    length = sum(len(p.split()) for p in predictions)
    wanted = sum(len(r.split()) for r in references)
    return min(1.0, math.exp(1 - wanted / length)) * math.exp(sum(logs) / 4)


def _lcs(a: list[str], b: list[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        before, row = row, [0]
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(before[j + 1], row[j]))
    return row[-1]


def _rouge(prediction: str, reference: str) -> float:
    p, r = prediction.split(), reference.split()
    common = _lcs(p, r)
    return 2 * common / (len(p) + len(r))


def _cider(predictions: list[str], references: list[str]) -> float:
    """CIDEr-D, Vedantam et al. 2015, equations 2 to 4 with clipping and length penalty."""
    total = 0.0
    for n in range(1, 5):
        seen = Counter(gram for text in references for gram in _ngrams(text, n))
        for prediction, reference in zip(predictions, references, strict=True):
            p, r = (
                {
                    gram: count * (math.log(len(references)) - math.log(max(1, seen[gram])))
                    for gram, count in _ngrams(text, n).items()
                }
                for text in (prediction, reference)
            )
            dot = sum(min(weight, r.get(gram, 0)) * r.get(gram, 0) for gram, weight in p.items())
            norms = math.sqrt(sum(w * w for w in p.values()) * sum(w * w for w in r.values()))
            # The reference program takes the number of bigrams for the length.
            gap = _ngrams(prediction, 2).total() - _ngrams(reference, 2).total()
            if norms:
                total += dot / norms * math.exp(-(gap**2) / (2 * 6**2))
    return 10 * total / 4 / len(references)


def _value(found: Result) -> float:
    assert isinstance(found, Score)
    return found.value


@pytest.mark.parametrize(("seed", "count"), [(0, 40), (1, 7), (2, 2)])
def test_scores_equal_their_definitions(seed: int, count: int) -> None:
    predictions, references = _captions(seed, count)
    assert _value(bleu4(predictions, references)) == pytest.approx(_bleu(predictions, references))
    assert _value(cider(predictions, references)) == pytest.approx(_cider(predictions, references))
    each = [_rouge(*pair) for pair in zip(predictions, references, strict=True)]
    assert _value(rouge_l(predictions, references)) == pytest.approx(sum(each) / count)


def test_bleu_keeps_case_splits_punctuation_and_smooths() -> None:
    text = "The red ball, near a door."
    assert _value(bleu4([text], [text])) == pytest.approx(1)
    # 13a makes "ball," two words; with the case of one word changed 7, 5, 3, 2 n-grams match ...
    found = _value(bleu4(["The red Ball, near a door."], [text]))
    assert found == pytest.approx((7 / 8 * 5 / 7 * 3 / 6 * 2 / 5) ** 0.25)
    # ... and with no matching 4-gram, half a match is counted instead.
    found = _value(bleu4(["a b c x e"], ["a b c d f"]))
    assert found == pytest.approx((3 / 5 * 2 / 4 * 1 / 3 * 0.5 / 2) ** 0.25)


def test_rouge_stems_words() -> None:
    assert _value(rouge_l(["Lamps standing"], ["lamp stands"])) == pytest.approx(1)


@pytest.mark.parametrize("metric", [bleu4, rouge_l, cider])
def test_intervals_are_repeatable_and_shrink_with_the_samples(metric) -> None:
    few, many = metric(*_captions(3, 12)), metric(*_captions(3, 300))
    assert metric(*_captions(3, 12)) == few
    widths = []
    for found in (few, many):
        low, high = found.interval
        assert low < found.value < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_bleu_without_any_four_words_is_undefined() -> None:
    found = bleu4(["red", "on the left"], ["red", "on the left"])
    assert found == NotComputed("no prediction has four words, so BLEU-4 is undefined")
    assert _value(bleu4(["red", "a b c d"], ["red", "e f g h"])) < 1


def test_cider_of_one_sample_is_not_computed() -> None:
    assert isinstance(cider(["a red ball"], ["a red ball"]), NotComputed)
    assert _value(cider(["a b c d", "e f g h"], ["a b c d", "e f g h"])) == pytest.approx(10)


def test_a_script_that_rouge_cannot_see_is_not_computed() -> None:
    assert isinstance(rouge_l(["빨간 공"], ["빨간 공"]), NotComputed)


def test_an_empty_prediction_scores_zero() -> None:
    references = ["a red ball here", "the old dog sat"]
    assert _value(rouge_l(["", ""], references)) == 0
    assert _value(cider(["", ""], references)) == 0


@pytest.mark.parametrize(
    ("metric", "module", "name"),
    [
        (bleu4, "sacrebleu.metrics", "sacrebleu"),
        (rouge_l, "rouge_score.rouge_scorer", "rouge-score"),
        (cider, "pycocoevalcap.cider.cider", "pycocoevalcap"),
    ],
)
def test_a_missing_package_is_named(
    metric, module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    found = metric(["a b c d", "e"], ["a b c d", "e"])
    assert isinstance(found, NotComputed)
    assert name in found.reason
    assert "pip install 'panovlm[eval]'" in found.reason
