"""BLEU-4, ROUGE-L and CIDEr by the reference libraries, with bootstrap intervals.

Every function takes one prediction and one reference per sample, as plain strings in the same
order, and scores them as they are: cleaning is the caller's choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panovlm.evaluation.metrics.scores import (
    NotComputed,
    Result,
    Score,
    mean_score,
    package,
    percentile_interval,
    resamples,
)

_ORDER = 4


def bleu4(predictions: Sequence[str], references: Sequence[str]) -> Result:
    """Corpus BLEU with 4-grams (Papineni et al. 2002) by sacrebleu, on a scale of 0..1.

    Tokens of mteval-v13a, case kept, exponential smoothing. Without a single 4-gram in all
    predictions the measure is undefined, so short answers give no score instead of 0.
    """
    sacrebleu: Any = package("sacrebleu.metrics", "sacrebleu")
    if isinstance(sacrebleu, NotComputed):
        return sacrebleu
    # effective_order changes no count; it only stops a warning about single sentences.
    counter = sacrebleu.BLEU(tokenize="13a", effective_order=True)
    counts: NDArray[np.int64] = np.array(
        [
            _bleu_counts(counter.sentence_score(prediction, [reference]))
            for prediction, reference in zip(predictions, references, strict=True)
        ]
    )

    def score(rows: NDArray[np.int64]) -> float:
        sums: list[int] = rows.sum(0).tolist()
        found = counter.compute_bleu(
            sums[2 : 2 + _ORDER], sums[2 + _ORDER :], sums[0], sums[1], smooth_method="exp"
        )
        return found.score / 100

    if not counts[:, -1].any():
        return NotComputed("no prediction has four words, so BLEU-4 is undefined")
    if len(counts) == 1:
        return Score(score(counts))
    spread = [score(counts[chosen]) for chosen in resamples(len(counts))]
    return Score(score(counts), percentile_interval(spread))


def _bleu_counts(sentence: Any) -> list[int]:
    """Return a sentence's statistics: both lengths, matches and n-grams of each order."""
    return [sentence.sys_len, sentence.ref_len, *sentence.counts, *sentence.totals]


def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> Result:
    """Mean ROUGE-L F-measure (Lin 2004) by rouge-score, with Porter stemming, 0..1.

    Its tokens are runs of a-z and 0-9, so texts in another script cannot be compared.
    """
    rouge: Any = package("rouge_score.rouge_scorer", "rouge-score")
    if isinstance(rouge, NotComputed):
        return rouge
    if not any(letter.isascii() and letter.isalnum() for text in references for letter in text):
        return NotComputed("no reference has a word in Latin letters, and ROUGE-L sees no others")
    scorer = rouge.RougeScorer(["rougeL"], use_stemmer=True)
    return mean_score(
        np.array(
            [
                scorer.score(reference, prediction)["rougeL"].fmeasure
                for prediction, reference in zip(predictions, references, strict=True)
            ]
        )
    )


def cider(predictions: Sequence[str], references: Sequence[str]) -> Result:
    """Mean CIDEr-D (Vedantam et al. 2015) by pycocoevalcap, 0..10.

    Words are split at white space. The weights of the words come from these references, so
    scores of different sample sets do not compare, and the interval takes the weights as given.
    """
    coco: Any = package("pycocoevalcap.cider.cider", "pycocoevalcap")
    if isinstance(coco, NotComputed):
        return coco
    if len(predictions) < 2:
        return NotComputed("CIDEr weighs words by how many samples use them; one sample is too few")
    if not any(text.split() for text in references):
        return NotComputed("every reference is empty")
    _, values = coco.Cider().compute_score(
        {row: [text] for row, text in enumerate(references)},
        {row: [text] for row, text in enumerate(predictions)},
    )
    return mean_score(np.asarray(values, dtype=np.float64))
