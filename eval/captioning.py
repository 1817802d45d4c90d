"""Scores of dense captions: CIDEr-D (Vedantam et al. 2015), SODA_c (Fujita et al. 2020), and F1 of the spans alone.

Words are lower-case runs of letters and digits; the papers' numbers use Stanford's tokenizer, which keeps a few more. SODA_c's METEOR is
NLTK's with stems and without synonyms, because WordNet is a download of its own: a little lower than the published scores.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlm.errors import DataError, MissingDependencyError
from vlm.time import Span

THRESHOLDS = (0.3, 0.5, 0.7, 0.9)
"""Of intersection over union: ActivityNet's protocol for dense captions."""

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_SIGMA = 6.0  # of CIDEr-D's penalty for length
_ORDERS = (1, 2, 3, 4)
Grams = list[Counter[tuple[str, ...]]]


@dataclass(frozen=True)
class Caption:
    """A sentence and when it is true.

    Attributes:
        span: Seconds.
        text: The sentence.
    """

    span: Span
    text: str


def words(sentence: str) -> list[str]:
    """Words of a sentence, lower-case, without punctuation."""
    return _WORD.findall(sentence.lower())


class CiderD:
    """CIDEr-D: cosine of n-gram counts weighted by how rare they are among the references, 1 to 4 words, times 10.

    Args:
        references: For each thing that is described its true sentences; from these rarity is counted.

    Raises:
        DataError: There are none.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        if not references:
            raise DataError("CIDEr-D needs reference sentences to count how rare words are")
        self._documents: Counter[tuple[str, ...]] = Counter()
        for sentences in references:
            self._documents.update({gram for s in sentences for counts in _grams(s) for gram in counts})
        self._log_count = math.log(len(references))

    def score(self, sentence: str, references: Sequence[str]) -> float:
        """Of one sentence against the references of what it describes, 0 to 10."""
        said, length = self._vectors(sentence)
        total = np.zeros(len(_ORDERS))
        for reference in references:
            true, true_length = self._vectors(reference)
            penalty = math.exp(-((length - true_length) ** 2) / (2 * _SIGMA**2))
            total += [penalty * _clipped_cosine(a, b) for a, b in zip(said, true, strict=True)]
        return float(10.0 * total.mean() / len(references)) if references else 0.0

    def _vectors(self, sentence: str) -> tuple[list[dict[tuple[str, ...], float]], int]:
        grams = _grams(sentence)
        weighted = [
            {g: n * (self._log_count - math.log(max(1.0, self._documents[g]))) for g, n in counts.items()}
            for counts in grams
        ]
        return weighted, sum(grams[1].values())  # the reference implementation measures length in pairs of words


def _grams(sentence: str) -> Grams:
    said = words(sentence)
    return [Counter(tuple(said[i : i + n]) for i in range(len(said) - n + 1)) for n in _ORDERS]


def _clipped_cosine(said: Mapping[tuple[str, ...], float], true: Mapping[tuple[str, ...], float]) -> float:
    overlap = sum(min(value, true[g]) * true[g] for g, value in said.items() if g in true)
    lengths = [math.sqrt(sum(v * v for v in x.values())) for x in (said, true)]
    return overlap / (lengths[0] * lengths[1]) if all(lengths) else 0.0


def meteor(sentence: str, reference: str) -> float:
    """METEOR with stems, 0 to 1.

    Raises:
        MissingDependencyError: NLTK is not installed.
    """
    try:
        from nltk.translate.meteor_score import single_meteor_score
    except ImportError as error:
        raise MissingDependencyError("nltk", extra="eval", purpose="METEOR") from error
    said, true = words(sentence), words(reference)
    return float(single_meteor_score(true, said, wordnet=_NoSynonyms())) if said and true else 0.0


class _NoSynonyms:
    """Stands in for WordNet where it has not been downloaded."""

    def synsets(self, word: str) -> list[str]:
        return []


def soda_c(predicted: Sequence[Caption], truth: Sequence[Caption]) -> float:
    """SODA_c of one video, 0 to 1: F1 of IoU x METEOR, captions matched one to one in the order of time so that its sum is largest."""
    if not predicted or not truth:
        return float(not predicted and not truth)
    said, true = (sorted(c, key=lambda caption: (caption.span.start, caption.span.end)) for c in (predicted, truth))
    value = np.array([[p.span.iou(t.span) and p.span.iou(t.span) * meteor(p.text, t.text) for t in true] for p in said])
    best = np.zeros((len(said) + 1, len(true) + 1))
    for i in range(len(said)):
        for j in range(len(true)):
            best[i + 1, j + 1] = max(best[i, j + 1], best[i + 1, j], best[i, j] + value[i, j])
    precision, recall = best[-1, -1] / len(said), best[-1, -1] / len(true)
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def span_f1(predicted: Sequence[Span], truth: Sequence[Span]) -> float:
    """F1 of one video: how many spans have a counterpart on the other side, averaged over `THRESHOLDS`, 0 to 1."""
    if not predicted or not truth:
        return float(not predicted and not truth)
    overlap = np.array([[p.iou(t) for t in truth] for p in predicted])
    precision = float(np.mean([(overlap.max(1) >= t).mean() for t in THRESHOLDS]))
    recall = float(np.mean([(overlap.max(0) >= t).mean() for t in THRESHOLDS]))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def dense_cider(predicted: Sequence[Sequence[Caption]], truth: Sequence[Sequence[Caption]]) -> float:
    """CIDEr-D of dense captions, averaged over `THRESHOLDS` and captions: each is compared with every true one that it overlaps by at
    least the threshold (the mean, if several); without any it scores 0 (ActivityNet's protocol, where it would be compared with noise).

    Args:
        predicted: Captions of each video.
        truth: True ones of each video, in the same order.
    """
    cider = CiderD([[t.text] for video in truth for t in video])
    scores = []
    for said, true in zip(predicted, truth, strict=True):
        for caption in said:
            for threshold in THRESHOLDS:
                near = [t.text for t in true if caption.span.iou(t.span) >= threshold]
                scores.append(float(np.mean([cider.score(caption.text, [t]) for t in near])) if near else 0.0)
    return float(np.mean(scores)) if scores else 0.0
