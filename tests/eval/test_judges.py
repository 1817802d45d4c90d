"""Judges: both orders, failures counted and left out, ratings read strictly."""

from __future__ import annotations

from typing import Any

import pytest

from data_recipes.text_models import Endpoint
from eval.judges import Case, ModelJudge, Verdict, WordJudge, judge_called, read_ratings, relative_score
from vlm.errors import DataError

CASES = [
    Case("", "When, and why?", "because a red circle comes last", said)
    for said in ("a red circle comes last", "no idea")
]


class Rater:
    """Gives fixed replies in turn."""

    name = "rater"

    def __init__(self, *replies: str | Exception) -> None:
        self.replies, self.prompts = list(replies), list[str]()

    def complete(self, prompt: str, **_: Any) -> str:
        self.prompts.append(prompt)
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


def test_both_orders_are_asked_and_averaged() -> None:
    rater = Rater("8 4\nfine", "6, 8", "10 1", "1 10")
    verdict = relative_score(ModelJudge(rater), CASES)
    assert verdict == Verdict(score=100 * (4 + 6 + 1 + 1) / (8 + 8 + 10 + 10), failed=0, asked=4, first=0.0)
    first, second = rater.prompts[:2]
    assert first.index(CASES[0].truth) < first.index(CASES[0].said + "\n")
    assert second.index("Answer 1: " + CASES[0].said) < second.index("Answer 2: " + CASES[0].truth)


def test_a_judge_that_prefers_the_first_place_is_found_out_and_cancelled() -> None:
    verdict = relative_score(ModelJudge(Rater(*["9 5"] * 4)), CASES)
    assert (verdict.score, verdict.first) == (100.0, 1.0)


def test_failures_are_counted_and_left_out() -> None:
    verdict = relative_score(ModelJudge(Rater("8 4", "I like both", DataError("busy"), "0 5")), CASES)
    assert verdict == Verdict(score=50.0, failed=3, asked=4, first=0.0)
    nothing = relative_score(ModelJudge(Rater(*["?"] * 4)), CASES)
    assert nothing.failed == 4 and nothing.score != nothing.score


@pytest.mark.parametrize(
    ("reply", "ratings"),
    [
        ("8 4", (8, 4)), (" 7.5, 10\nbecause", (7.5, 10)), ("8/9", (8, 9)), ("8;9", (8, 9)), ("8", None), ("0 5", None),
        ("11 5", None), ("Answer 1: 8", None), ("", None), ("\n8 4", (8, 4)),
    ],
)  # fmt: skip
def test_ratings_are_read_strictly(reply: str, ratings: tuple[float, float] | None) -> None:
    assert read_ratings(reply) == ratings


def test_without_a_language_model_words_are_compared() -> None:
    good, bad = (relative_score(WordJudge(), [case]) for case in CASES)
    assert good.score > 60 > bad.score and good.failed == bad.failed == 0
    same = Case("", "When?", "the beep", "the beep")
    assert relative_score(WordJudge(), [same]).score == 100.0


def test_judges_have_names() -> None:
    assert judge_called("words") == WordJudge()
    assert judge_called("http://localhost:1/v1#x") == ModelJudge(Endpoint("http://localhost:1/v1", "x"))
