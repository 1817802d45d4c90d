"""What can be asked about needles: find it, find it among look-alikes, when is it, name several, their order, count, is it there, hear it.

Every task hides something at the depth of a cell and asks one or more questions about it (`Trial`). With several needles one lies
at the cell's depth and the others at even distances from it, from the end on to the beginning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from data_recipes.sample import rng_for
from data_recipes.synth.shapes_questions import span_words
from eval.needles import Needle, NeedleSet, guess_chance, hide, insert_needle, position, rotations
from eval.niah_judge import is_right, names_all
from eval.niah_sets import SoundNeedle, definite, names_of
from eval.niah_sound import Heard
from eval.niah_trials import ALONE, NO_NEEDLE, Bare, Judge, Task, Trial, counted, describe, timed
from vlm.errors import ConfigError, DataError
from vlm.media import Video
from vlm.time import Span, frame_edges

TASKS = ("retrieve", "distract", "when", "several", "order", "count", "absent", "sound")
PERIOD = 200
"""Frames from one look-alike to the next in V-NIAH-D, as VideoRoPE is quoted; a quarter of a haystack shorter than 800 frames."""


def _words(answer: str | Sequence[str], wrong: Sequence[str] = ()) -> Judge:
    return lambda model, reply: is_right(reply, answer, wrong)


@dataclass(frozen=True)
class _Pictures:
    """What tasks that hide pictures have in common."""

    needles: NeedleSet

    @property
    def size(self) -> int:
        return len(self.needles.needles)


@dataclass(frozen=True)
class Retrieve(_Pictures):
    """One needle; LongVA's protocol. With ``period``, look-alikes at every multiple of it before and behind the needle.

    Attributes:
        needles: What is hidden, one at a time.
        mode: ``insert`` or ``replace``.
        distract: Hide look-alikes, too (V-NIAH-D).
        period: Distance in frames of the finished video; None for `PERIOD` or a quarter of the haystack.
    """

    mode: str = "insert"
    distract: bool = False
    period: int | None = None
    alone: bool = field(default=True, init=False)
    _bare: Bare = field(default_factory=Bare, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.period is not None and self.period < 2:
            raise ConfigError(f"period={self.period} must be 2 or more frames")
        if self.distract:
            _need(self.needles, "lookalike", "distract")

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"task": "distract" if self.distract else "retrieve", "mode": self.mode}
        if self.distract:
            facts["period"] = self.period or f"{PERIOD}, a quarter of shorter videos"
        return {**facts, "needles": describe(self.needles)}

    def trials(self, hay: Video, depth: float, index: int) -> Iterator[Trial]:
        needle, every = self.needles.needles[index], self.needles.needles
        video = alone(hay, needle.image) if depth == ALONE else self._hidden(hay, depth, index)
        wrong = [name for n in every if n.options is None for name in n.names] if needle.options is None else []
        chance = guess_chance(needle, every)
        for question, answer in rotations(needle):
            accepted = needle.names if needle.options is None else (answer,)
            judge = self._bare.judge(hay, question, wrong, partial(_is_right, answer=accepted))
            yield Trial(video, question, self.needles.forced(answer), judge, "retrieve", chance)

    def _hidden(self, hay: Video, depth: float, index: int) -> Video:
        count, shown = len(hay.frames), depth != NO_NEEDLE
        place = position(depth if shown else 0.5, count, self.mode)
        pictures = [(place, self.needles.needles[index].image)] if shown else []
        if self.distract:
            pictures += self._lookalikes(place, count, index)
        return hide(hay, pictures, self.mode)[0] if pictures else hay

    def _lookalikes(self, place: int, count: int, index: int) -> list[tuple[int, np.ndarray]]:
        """Positions such that in the finished video neighbours are a period apart: between two of them are period - 1 frames."""
        period = self.period or min(PERIOD, max(2, count // 4))
        step, last = (period - 1, count) if self.mode == "insert" else (period, count - 1)
        places = [*range(place - step, -1, -step), *range(place + step, last + 1, step)]
        every = self.needles.needles
        twins = [every[(index + i) % len(every)].lookalike for i in range(len(places))]
        return [(p, twin) for p, twin in zip(places, twins, strict=True) if twin is not None]


@dataclass(frozen=True)
class Several(_Pictures):
    """Several needles at once: all must be named (``several``), named in order (``order``), or counted (``count``).

    Free words are wrong if they name a needle that is not there. A set whose question about the order asks for the first of two
    gets two needles.

    Attributes:
        needles: The needle of a trial is hidden together with others drawn for it.
        what: ``several``, ``order`` or ``count``.
        mode: ``insert`` or ``replace``.
        k: How many; for ``count`` the most.
        seed: Of the draw.
    """

    what: str
    mode: str = "insert"
    k: int = 3
    seed: int = 0
    alone: bool = field(default=False, init=False)
    _bare: Bare = field(default_factory=Bare, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not getattr(self.needles, self.what):
            raise DataError(
                f"the needles {self.needles.name!r} have no question for task={self.what}; add it to 'questions'"
            )
        most = len(self.needles.numbers) - 1 if self.what == "count" else len(self.needles.needles)
        copies = self.what == "count" and "{what}" in self.needles.count
        if not 2 <= self.k <= most or (self.k > self.size and not copies):
            raise ConfigError(f"k={self.k} must be 2 to {most if copies else min(most, self.size)} of these needles")

    @property
    def facts(self) -> dict[str, Any]:
        return {"task": self.what, "mode": self.mode, "k": self.k, "needles": describe(self.needles)}

    def trials(self, hay: Video, depth: float, index: int) -> Iterator[Trial]:
        every, spare = self.needles.needles, rng_for(self.seed, 400, index)
        pair = self.what == "order" and "{second}" in self.needles.order
        number = 1 + index % self.k if self.what == "count" else 2 if pair else self.k
        others = [i for i in spare.permutation(len(every)).tolist() if i != index]
        chosen = [index, *others][:number]
        if self.what == "count" and "{what}" in self.needles.count:
            chosen = [index] * number
        if depth == NO_NEEDLE:
            yield self._trial(hay, hay, chosen)
            return
        spots = [position((depth + i / number) % 1 if i else depth, len(hay.frames), self.mode) for i in range(number)]
        video, places = hide(hay, [(p, every[c].image) for p, c in zip(spots, chosen, strict=True)], self.mode)
        yield self._trial(hay, video, [chosen[i] for i in np.argsort(places)])

    def _trial(self, hay: Video, video: Video, shown: list[int]) -> Trial:
        needles = [self.needles.needles[i] for i in shown]
        if self.what == "count":
            return self._count(video, needles, 0 if video is hay else len(needles))
        if "{second}" in self.needles.order and self.what == "order":
            return self._first(video, needles, shown)
        items, other = [n.names for n in needles], [n for i, n in enumerate(self.needles.needles) if i not in shown]
        wrong = [w for w in names_of(other) if all(w not in names for names in items)]
        total, k = len(self.needles.needles), len(needles)
        chance = 1 / (math.comb(total, k) if self.what == "several" else math.perm(total, k))
        question, right = (
            getattr(self.needles, self.what),
            partial(_names_all, items=items, ordered=self.what == "order"),
        )
        answer = self.needles.forced(self.needles.items.format(items=", ".join(n.answer for n in needles)))
        return Trial(video, question, answer, self._bare.judge(hay, question, wrong, right), self.what, chance)

    def _first(self, video: Video, needles: list[Needle], shown: list[int]) -> Trial:
        """Which of two comes first; the question names them in the order of the set."""
        the = [definite(n.answer) for n in needles]
        named = the if shown[0] < shown[1] else the[::-1]
        question = self.needles.order.format(first=named[0], second=named[1])
        return Trial(
            video, question, self.needles.forced(the[0]), _words(needles[0].names, needles[1].names), "order", 0.5
        )

    def _count(self, video: Video, needles: list[Needle], number: int) -> Trial:
        word = self.needles.numbers[number]
        items = ", ".join(n.answer for n in needles)
        answer = self.needles.forced(self.needles.number.format(items=items, number=word) if number else word)
        judge = partial(counted, number=number, numbers=self.needles.numbers)
        return Trial(video, self.needles.count.format(what=needles[0].answer), answer, judge, "count", 1 / self.k)


def _is_right(reply: str, wrong: Sequence[str], *, answer: Sequence[str]) -> bool:
    return is_right(reply, answer, wrong)


def _names_all(reply: str, wrong: Sequence[str], *, items: Sequence[Sequence[str]], ordered: bool) -> bool:
    return names_all(reply, items, wrong, ordered=ordered)


@dataclass(frozen=True)
class When(_Pictures):
    """When is it shown? The time counts, within a tolerance (`eval.niah_judge.says_time`).

    Attributes:
        needles: With a question of when each.
        mode: ``insert`` or ``replace``.
    """

    mode: str = "insert"
    alone: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        _need(self.needles, "when", "when")

    @property
    def facts(self) -> dict[str, Any]:
        return {"task": "when", "mode": self.mode, "needles": describe(self.needles)}

    def trials(self, hay: Video, depth: float, index: int) -> Iterator[Trial]:
        needle = self.needles.needles[index]
        if depth == NO_NEEDLE:
            video, place = hay, position(0.5, len(hay.frames), self.mode)
        else:
            video, place = insert_needle(hay, needle.image, depth, mode=self.mode)
        edges = frame_edges(video.timestamps - video.start, video.end - video.start)
        truth = Span(float(edges[place]), float(edges[place + 1]))
        yield timed(video, needle.when, self.needles.forced(span_words(truth)), truth)


@dataclass(frozen=True)
class Absent(_Pictures):
    """Is it there? Asked once with the needle and once with its look-alike in its place, so that yes and no are equally often right.

    Attributes:
        needles: With a question of presence and a look-alike each.
        mode: ``insert`` or ``replace``.
    """

    mode: str = "insert"
    alone: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        _need(self.needles, "presence", "absent")
        _need(self.needles, "lookalike", "absent")

    @property
    def facts(self) -> dict[str, Any]:
        return {"task": "absent", "mode": self.mode, "needles": describe(self.needles)}

    def trials(self, hay: Video, depth: float, index: int) -> Iterator[Trial]:
        needle, (yes, no) = self.needles.needles[index], self.needles.yes
        if depth == NO_NEEDLE:
            yield Trial(hay, needle.presence, self.needles.forced(no), _words(no, [yes]), "absent", 0.5)
            return
        for kind, picture, truth, other in (("present", needle.image, yes, no), ("absent", needle.lookalike, no, yes)):
            if picture is not None:
                video = alone(hay, picture) if depth == ALONE else self._hidden(hay, depth, picture)
                forced = self.needles.forced(truth)
                yield Trial(video, needle.presence, forced, _words(truth, [other]), kind, 0.5)

    def _hidden(self, hay: Video, depth: float, picture: np.ndarray) -> Video:
        return hide(hay, [(position(depth, len(hay.frames), self.mode), picture)], self.mode)[0]


def alone(hay: Video, picture: np.ndarray) -> Video:
    """The needle without a haystack: a video of one second that shows nothing else."""
    one = replace(hay, frames=hay.frames[:1], timestamps=np.array([0.5]), duration=1.0, start=0.0, end=1.0, audio=None)
    return hide(one, [(0, picture)], "replace")[0]


def _need(needles: NeedleSet, what: str, task: str) -> None:
    for i, needle in enumerate(needles.needles, 1):
        value = getattr(needle, what)
        if value is None or (isinstance(value, str) and not value):
            raise DataError(f"needle {i} of {needles.name!r} has no {what!r}, which task={task} needs")


def make_task(
    name: str, needles: NeedleSet | Sequence[SoundNeedle], *, mode: str, k: int, period: int | None, seed: int
) -> Task:
    """A task by its name in `TASKS`.

    Raises:
        ConfigError: Unknown task or mode, or an option out of range.
        DataError: The needles lack what the task asks about.
    """
    position(0.0, 1, mode)
    if not isinstance(needles, NeedleSet):
        return Heard(tuple(needles))
    if name in ("retrieve", "distract"):
        return Retrieve(needles, mode, name == "distract", period)
    if name == "absent":
        return Absent(needles, mode)
    if name == "when":
        return When(needles, mode)
    if name in ("several", "order", "count"):
        return Several(needles, name, mode, k, seed)
    raise ConfigError(f"task={name!r} is not one of {', '.join(TASKS)}")
