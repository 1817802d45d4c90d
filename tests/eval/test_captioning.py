"""Scores of captions: CIDEr-D against values of pycocoevalcap, SODA_c against every matching, hand-made cases."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.captioning import Caption, CiderD, dense_cider, meteor, soda_c, span_f1, words
from vlm.errors import DataError
from vlm.time import Span

VOCABULARY = words("a dog runs away from the red ball while two people play music on street and then jumps")
PYCOCOEVALCAP = [
    0.360689, 0.307668, 0.036579, 0.676017, 0.490246, 0.718951, 0.583826, 0.622283, 0.62499, 0.211279, 0.380261, 5.491096,
]  # fmt: skip
SPANS = st.builds(Span.of, st.floats(0, 20), st.floats(0, 20))
CAPTIONS = st.lists(
    st.builds(Caption, SPANS, st.sampled_from(["a dog runs", "two dogs run", "music", "a red ball"])), max_size=4
)


def sentences() -> tuple[list[str], list[list[str]]]:
    """Random words, and the references that pycocoevalcap 1.2 (CiderScorer, n=4, sigma=6) was given with them."""
    rng = random.Random(0)
    refs = [
        [" ".join(rng.choices(VOCABULARY, k=rng.randint(3, 12))) for _ in range(rng.randint(1, 3))] for _ in range(12)
    ]
    said = [" ".join(rng.choices(VOCABULARY, k=rng.randint(2, 12))) for _ in range(11)]
    return [*said, refs[-1][0]], refs


def test_cider_d_equals_pycocoevalcap() -> None:
    said, references = sentences()
    cider = CiderD(references)
    assert [cider.score(s, r) for s, r in zip(said, references, strict=True)] == pytest.approx(PYCOCOEVALCAP, abs=1e-5)


def test_the_same_words_score_ten_and_other_words_nothing() -> None:
    cider = CiderD([["a dog runs over the street"], ["music is played by two people"]])
    assert cider.score("A dog runs over the street.", ["a dog runs over the street"]) == pytest.approx(10.0)
    assert cider.score("nothing of that", ["a dog runs over the street"]) == 0.0
    assert cider.score("", ["a dog runs over the street"]) == 0.0
    with pytest.raises(DataError, match="reference"):
        CiderD([])


def test_meteor_knows_stems_and_order() -> None:
    assert meteor("a dog runs", "a dog runs") > 0.95
    assert meteor("dogs run", "dog runs") > 0.9
    assert meteor("runs dog a", "a dog runs") < meteor("a dog runs", "a dog runs")
    assert meteor("", "a dog runs") == meteor("music", "a dog runs") == 0.0


def every_matching(predicted: list[Caption], truth: list[Caption]) -> float:
    """SODA_c the slow way: all ways to match in order."""
    said, true = (sorted(c, key=lambda x: (x.span.start, x.span.end)) for c in (predicted, truth))
    best = 0.0
    for k in range(min(len(said), len(true)) + 1):
        for some in combinations(said, k):
            for others in combinations(true, k):
                best = max(
                    best, sum(p.span.iou(t.span) * meteor(p.text, t.text) for p, t in zip(some, others, strict=True))
                )
    precision, recall = best / len(said), best / len(true)
    return 2 * precision * recall / (precision + recall) if best else 0.0


@settings(max_examples=40, deadline=None)
@given(CAPTIONS, CAPTIONS)
def test_soda_is_the_best_matching_in_order(predicted: list[Caption], truth: list[Caption]) -> None:
    if not predicted or not truth:
        assert soda_c(predicted, truth) == float(not predicted and not truth)
    else:
        assert soda_c(predicted, truth) == pytest.approx(every_matching(predicted, truth), abs=1e-9)


def test_spans_alone() -> None:
    truth = [Span(0, 10), Span(20, 30)]
    assert span_f1(truth, truth) == 1.0
    assert span_f1([Span(0, 10)], truth) == pytest.approx(2 * 1.0 * 0.5 / 1.5)
    assert span_f1([Span(0, 5), Span(20, 30)], truth) == pytest.approx(0.75)  # 0.5 reaches two of four thresholds
    assert span_f1([], []) == 1.0 and span_f1([], truth) == span_f1(truth, []) == 0.0


def test_dense_captions_are_compared_where_they_overlap() -> None:
    truth = [[Caption(Span(0, 10), "a dog runs over the street")], [Caption(Span(0, 5), "two people play music")]]
    assert dense_cider(truth, truth) == pytest.approx(10.0)
    late = [[Caption(Span(40, 50), "a dog runs over the street")], truth[1]]
    assert dense_cider(late, truth) == pytest.approx(5.0)
    half = [[Caption(Span(0, 5), "a dog runs over the street")], truth[1]]  # IoU 0.5: two of four thresholds
    assert dense_cider(half, truth) == pytest.approx(7.5)
    assert dense_cider([[], []], truth) == 0.0


def test_words_are_what_is_spoken() -> None:
    assert words("It's a Dog, running (fast)!") == ["it's", "a", "dog", "running", "fast"]
