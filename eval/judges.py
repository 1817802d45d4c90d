"""Judges of explanations: who compares a model's words with the true ones, and what is made of it.

LITA's relative score (2403.19046 §4; released code) asks GPT-4 to rate the true answer and the model's, and divides the means. Here both
orders are asked and averaged, because judges prefer the first, and answers that cannot be read are left out and counted (LITA's code
keeps them in the mean as -1). The wording is ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data_recipes.text_models import TextModel, text_model
from eval.captioning import meteor
from vlm.errors import DataError

SYSTEM = "You judge answers to questions about a video. You know the video only by what is said about it."
PROMPT = """What is known about the video:
{context}

Question: {question}

Answer 1: {one}

Answer 2: {other}

Rate how right, relevant, detailed and helpful each answer is, from 1 to 10. Take no account of times. Answer with the two ratings in the \
first line, separated by a space, and nothing else in that line."""
_RATINGS = re.compile(r"\s*(\d+(?:\.\d+)?)\s*[ ,;/]\s*(\d+(?:\.\d+)?)\b")


@dataclass(frozen=True)
class Case:
    """What a judge sees.

    Attributes:
        context: What is known about the video.
        question: In words.
        truth: The true answer, without times.
        said: The model's, without times.
    """

    context: str
    question: str
    truth: str
    said: str


class Judge(Protocol):
    """Rates two answers."""

    @property
    def name(self) -> str:
        """For results files."""

    def rate(self, case: Case, one: str, other: str) -> tuple[float, float] | None:
        """Ratings 1 to 10 of two answers; None if there is none to be had."""


@dataclass(frozen=True)
class ModelJudge:
    """A language model that rates.

    Attributes:
        model: Which.
    """

    model: TextModel

    @property
    def name(self) -> str:
        return self.model.name

    def rate(self, case: Case, one: str, other: str) -> tuple[float, float] | None:
        """See `Judge`."""
        asked = PROMPT.format(context=case.context or "nothing", question=case.question, one=one, other=other)
        try:
            reply = self.model.complete(asked, system=SYSTEM, max_tokens=32)
        except DataError:
            return None
        return read_ratings(reply)


@dataclass(frozen=True)
class WordJudge:
    """No language model: an answer's rating is 1 + 9 times its METEOR against the truth. For machines without one; no paper's score."""

    name: str = "words"

    def rate(self, case: Case, one: str, other: str) -> tuple[float, float] | None:
        """See `Judge`."""
        first, second = (1.0 + 9.0 * (1.0 if a == case.truth else meteor(a, case.truth)) for a in (one, other))
        return first, second


def read_ratings(reply: str) -> tuple[float, float] | None:
    """The two numbers of the first line, if they are two and in 1 to 10."""
    match = _RATINGS.match(reply.strip().split("\n", 1)[0])
    if match is None:
        return None
    one, other = float(match[1]), float(match[2])
    return (one, other) if all(1 <= r <= 10 for r in (one, other)) else None


def judge_called(spec: str) -> Judge:
    """``words``, or a language model (see `data_recipes.text_models.text_model`).

    Raises:
        ConfigError: An address without the name of a model.
    """
    return WordJudge() if spec == "words" else ModelJudge(text_model(spec))


@dataclass(frozen=True)
class Verdict:
    """What a judge found.

    Attributes:
        score: 100 x mean rating of the model / mean rating of the truth; NaN if no case could be judged.
        failed: Ratings that could not be had or read, of ``asked``.
        asked: Two for each case.
        first: Share of cases in which the answer that comes first got more, in both orders: how much the judge prefers a place.
    """

    score: float
    failed: int
    asked: int
    first: float


def relative_score(judge: Judge, cases: Sequence[Case]) -> Verdict:
    """Rate every case in both orders."""
    true: list[float] = []
    said: list[float] = []
    failed, biased, both = 0, 0, 0
    for case in cases:
        ahead, behind = judge.rate(case, case.truth, case.said), judge.rate(case, case.said, case.truth)
        failed += (ahead is None) + (behind is None)
        if ahead is not None:
            true.append(ahead[0])
            said.append(ahead[1])
        if behind is not None:
            true.append(behind[1])
            said.append(behind[0])
        if ahead is not None and behind is not None:
            both += 1
            biased += ahead[0] > ahead[1] and behind[0] > behind[1]
    score = 100.0 * float(np.mean(said)) / float(np.mean(true)) if true else float("nan")
    return Verdict(score, failed, 2 * len(cases), biased / both if both else 0.0)
