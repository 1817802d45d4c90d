"""What every needle task is made of: a `Trial` is one question about one video, a `Task` makes the trials of a cell."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from eval.needles import NeedleModel, NeedleSet
from eval.niah_judge import plain, says_number, says_time, time_slack
from eval.niah_sets import SoundNeedle
from vlm.media import Video
from vlm.time import Span

NO_NEEDLE, ALONE = -1.0, -2.0
"""Depths that stand for the baseline without a needle and for the needle without a haystack."""

Judge = Callable[[NeedleModel, str], bool]


@dataclass(frozen=True)
class Trial:
    """One question about one video.

    Attributes:
        video: What is shown.
        question: What is asked.
        answer: What teacher forcing puts into the model's mouth.
        judge: Whether free words are right.
        kind: Trials of a kind are averaged together.
        chance: Expected score of guessing (0..1).
    """

    video: Video
    question: str
    answer: str
    judge: Judge
    kind: str
    chance: float


class Task(Protocol):
    """Makes the trials of a cell, for one needle at a time."""

    @property
    def size(self) -> int:
        """Number of needles."""

    @property
    def alone(self) -> bool:
        """Whether a needle makes sense without a haystack."""

    @property
    def facts(self) -> dict[str, Any]:
        """What tells two measurements of the same model apart, for the results file."""

    def trials(self, hay: Video, depth: float, index: int) -> Iterator[Trial]:
        """The trials of needle ``index``; ``depth`` may be `NO_NEEDLE` or, where `alone` says so, `ALONE`."""


@dataclass
class Bare:
    """What a model says about the haystack alone, so that a name it gives to the haystack is not held against it."""

    hay: Video | None = None
    replies: dict[str, str] = field(default_factory=dict)

    def judge(
        self, hay: Video, question: str, wrong: Sequence[str], right: Callable[[str, Sequence[str]], bool]
    ) -> Judge:
        """A judge by ``right(reply, wrong)`` that lets pass what is named without a needle, too."""

        def judge(model: NeedleModel, reply: str) -> bool:
            if right(reply, wrong) or not right(reply, ()):
                return right(reply, wrong)
            said = plain(self._reply(model, hay, question))
            return right(reply, [w for w in wrong if plain(w) not in said])

        return judge

    def _reply(self, model: NeedleModel, hay: Video, question: str) -> str:
        if self.hay is not hay:
            self.hay, self.replies = hay, {}
        if question not in self.replies:
            self.replies[question] = model.answer(hay, question)
        return self.replies[question]


def timed(video: Video, question: str, answer: str, truth: Span) -> Trial:
    """A trial whose right answer is a time; ``truth`` is in seconds from the beginning of the video."""
    length = video.end - video.start
    shifted = Span(video.start + truth.start, video.start + truth.end)

    def judge(model: NeedleModel, reply: str) -> bool:
        return says_time(model.spans(video, reply), shifted, length)

    return Trial(video, question, answer, judge, "when", min(1.0, 2 * time_slack(truth, length) / length))


def counted(model: NeedleModel, reply: str, *, number: int, numbers: Sequence[str]) -> bool:
    """`says_number` as a `Judge`."""
    return says_number(reply, number, numbers)


def describe(needles: NeedleSet | Sequence[SoundNeedle]) -> str:
    """Name, number and a digest of everything that is shown, heard or asked."""
    total = hashlib.sha256()
    if isinstance(needles, NeedleSet):
        name, every = needles.name, needles.needles
        total.update(repr(replace(needles, needles=())).encode())
        for n in every:
            for picture in (n.image, n.lookalike):
                total.update(b"none" if picture is None else repr(picture.shape).encode() + picture.tobytes())
            total.update(repr((n.question, n.answer, n.options, n.also, n.presence, n.when)).encode())
        return f"{len(every)} {name}, sha256 {total.hexdigest()[:16]}"
    for sound in needles:
        total.update(sound.samples.tobytes() + repr((sound.rate, sound.text)).encode())
    return f"{len(needles)} {'sentences' if needles[0].text else 'beeps'}, sha256 {total.hexdigest()[:16]}"
