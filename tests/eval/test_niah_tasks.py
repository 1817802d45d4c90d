"""Tasks: an oracle is always right, guessing scores chance, look-alikes and several needles lie where they should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from eval.needles import NeedleSet
from eval.niah import measure
from eval.niah_sets import SoundNeedle, beeps, digits, shapes
from eval.niah_sound import Heard
from eval.niah_tasks import TASKS, Absent, Retrieve, Several, make_task
from eval.niah_trials import ALONE, NO_NEEDLE, Task, Trial
from tests.eval.oracles import SIZE, Guesser, Noise, Oracle
from vlm.errors import ConfigError, DataError
from vlm.media import Video
from vlm.time import Span

DIGITS = digits(SIZE)
CHOICES = replace(DIGITS, needles=tuple(replace(n, options=("0", "1", "2", "3")) for n in DIGITS.needles[:4]))
COPIES = replace(DIGITS, count="How many times is there {what}?", order="Which is first, {first} or {second}?")
DEPTHS = (0.0, 0.3, 0.5, 1.0)


def task(name: str, needles: NeedleSet = DIGITS, **options: Any) -> Task:
    defaults: dict[str, Any] = {"mode": "insert", "k": 3, "period": None, "seed": 0}
    return make_task(name, needles, **(defaults | options))


def trials(job: Task, frames: int, depth: float) -> list[Trial]:
    return [t for i in range(job.size) for t in job.trials(Noise()(frames), depth, i)]


def share(model: Oracle, job: Task, frames: int = 12, depths: tuple[float, ...] = DEPTHS) -> float:
    asked = [t for depth in depths for t in trials(job, frames, depth)]
    return float(np.mean([t.judge(model, model.answer(t.video, t.question)) for t in asked]))


def places(video: Video, image: np.ndarray) -> list[int]:
    return [i for i, frame in enumerate(video.frames) if np.array_equal(frame, image)]


@pytest.mark.parametrize("mode", ["insert", "replace"])
@pytest.mark.parametrize(
    "needles", [DIGITS, shapes(SIZE), CHOICES, COPIES], ids=["digits", "shapes", "choice", "copies"]
)
@pytest.mark.parametrize("name", [name for name in TASKS if name != "sound"])
def test_an_oracle_is_always_right(name: str, needles: NeedleSet, mode: str) -> None:
    assert share(Oracle(list(needles.needles)), task(name, needles, mode=mode)) == 1.0


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("sound", "count", "absent")])
def test_without_a_needle_nothing_is_found(name: str) -> None:
    assert share(Oracle(list(DIGITS.needles)), task(name), depths=(NO_NEEDLE,)) == 0.0


@pytest.mark.parametrize("name", ["count", "absent"])
def test_without_a_needle_none_is_the_right_answer(name: str) -> None:
    assert share(Oracle(list(DIGITS.needles)), task(name), depths=(NO_NEEDLE,)) == 1.0


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (task("retrieve"), [str(d) for d in range(10)]),
        (task("retrieve", CHOICES), list("ABCD")),
        (task("count"), ["one", "two", "three"]),
        (task("absent"), ["yes", "no"]),
        (task("order", COPIES), [str(d) for d in range(10)]),
        (task("several", k=2), [f"{a}, {b}" for a in range(10) for b in range(a)]),
        (task("order", k=2), [f"{a}, {b}" for a in range(10) for b in range(10) if a != b]),
    ],
    ids=["retrieve", "choice", "count", "absent", "first", "several", "order"],
)
def test_guessing_scores_chance(job: Task, words: list[str]) -> None:
    """Exactly: the mean over everything that could be said."""
    asked = trials(job, 6, 0.5)
    for trial in asked[:4]:
        named = [w for w in words if w in trial.question] or words  # "the first of 3 and 7" leaves two words to guess
        assert np.mean([trial.judge(Oracle([]), word) for word in named]) == pytest.approx(trial.chance)
    assert np.mean([t.chance for t in asked]) == pytest.approx(asked[0].chance)


@pytest.mark.parametrize("mode", ["insert", "replace"])
@pytest.mark.parametrize("start", [0.0, 7.0])
def test_the_time_of_a_needle_is_that_of_its_frame(mode: str, start: float) -> None:
    hay = Noise()(40)
    hay = replace(hay, timestamps=hay.timestamps + start, start=start, end=hay.end + start)
    for depth, first in ((0.0, 0), (0.5, 20), (1.0, 40 if mode == "insert" else 39)):
        (trial,) = task("when", mode=mode).trials(hay, depth, 4)
        assert places(trial.video, DIGITS.needles[4].image) == [first]
        assert trial.answer == f"from {{t:{first:.2f}}} to {{t:{first + 1:.2f}}}"
        for late in range(-2, 3):
            begin = start + first + late
            if begin >= 0:  # the tolerance is a second
                assert trial.judge(Oracle([]), f"from {begin} to {begin + 1}") == (abs(late) < 2)
        assert not trial.judge(Oracle([]), "I do not know.")


def test_guessing_a_time_scores_chance() -> None:
    (trial,) = task("when").trials(Noise()(200), 0.5, 0)
    said = [trial.judge(Oracle([]), f"from {t} to {t}") for t in np.arange(0.05, 201, 0.1)]
    assert np.mean(said) == pytest.approx(trial.chance, rel=0.02) and trial.chance == pytest.approx(0.04)


def test_a_taste_for_one_word_scores_chance() -> None:
    assert share(Guesser([], says="C"), task("retrieve", CHOICES)) == 0.25
    assert share(Guesser([], says="yes"), task("absent")) == 0.5
    assert share(Guesser([], says="two"), Several(DIGITS.first(9), "count")) == pytest.approx(1 / 3)


@pytest.mark.parametrize("mode", ["insert", "replace"])
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("frames", "period"), [(40, 7), (40, 2), (9, None), (820, None)])
def test_look_alikes_stand_at_every_period_from_the_needle(
    frames: int, period: int | None, depth: float, mode: str
) -> None:
    job = Retrieve(DIGITS, mode, distract=True, period=period)
    video = next(iter(job.trials(Noise()(frames), depth, 3))).video
    (needle,) = places(video, DIGITS.needles[3].image)
    twins = [i for n in DIGITS.needles if n.lookalike is not None for i in places(video, n.lookalike)]
    apart = period or (200 if frames >= 800 else max(2, frames // 4))
    assert sorted(twins) == [i for i in range(needle % apart, len(video.frames), apart) if i != needle]
    assert len(video.frames) == frames + (len(twins) + 1 if mode == "insert" else 0)
    assert (np.diff(video.timestamps) > 0).all()


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("mode", ["insert", "replace"])
def test_several_needles_spread_from_the_depth_of_the_cell(depth: float, mode: str) -> None:
    for index in range(10):
        (trial,) = Several(DIGITS, "order", mode).trials(Noise()(30), depth, index)
        shown = [DIGITS.needles[int(d)] for d in trial.answer.split(", ")]
        found = [p for n in shown for p in places(trial.video, n.image)]
        assert len(found) == 3
        assert found == sorted(found), "the answer names them in the order of the video"
        last = len(trial.video.frames) - 1
        mine = places(trial.video, DIGITS.needles[index].image)[0]
        assert abs(mine - depth * last) <= 2
        gaps = np.diff([*found, found[0] + last])
        assert gaps.min() >= 8


def test_counts_are_balanced_and_of_the_right_things() -> None:
    for needles, copies in ((DIGITS, False), (COPIES, True)):
        found = []
        for trial in trials(Several(needles, "count"), 12, 0.5):
            seen = Oracle(list(DIGITS.needles)).seen(trial.video)
            assert trial.answer == ("none", "one", "two", "three")[len(seen)]
            assert len({n.answer for n in seen}) == (1 if copies else len(seen))
            found.append(len(seen))
        assert found == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1]


def test_the_first_of_two_is_as_often_named_first_as_second() -> None:
    asked = [t for d in DEPTHS for t in trials(task("order", COPIES), 20, d)]
    first = [t.question.index(t.answer) < t.question.index("or") for t in asked]
    assert 0.3 < np.mean(first) < 0.7


def test_absent_asks_about_the_same_place_with_the_look_alike() -> None:
    yes, no = Absent(DIGITS).trials(Noise()(8), 0.5, 2)
    assert (yes.kind, yes.answer, no.kind, no.answer) == ("present", "yes", "absent", "no")
    assert np.array_equal(np.delete(yes.video.frames, 4, axis=0), np.delete(no.video.frames, 4, axis=0))
    assert np.array_equal(yes.video.frames[4], DIGITS.needles[2].image)
    assert not np.array_equal(no.video.frames[4], DIGITS.needles[2].image)


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_beep_lies_at_its_depth(depth: float) -> None:
    needles = beeps(1000)
    for i, needle in enumerate(needles):
        count, when = Heard(tuple(needles)).trials(Noise()(20), depth, i)
        assert count.video.audio is not None
        loud = np.flatnonzero(count.video.audio.samples[0])
        start = depth * (20 - needle.seconds)
        assert loud[0] / 1000 == pytest.approx(start, abs=0.01)
        assert (loud[-1] + 1) / 1000 == pytest.approx(start + needle.seconds, abs=0.01)
        assert len(count.video.audio.samples[0]) == 20_000
        oracle = Oracle([])
        assert count.judge(oracle, "one")
        assert not count.judge(oracle, "none")
        assert when.judge(oracle, f"{start} {start + needle.seconds}")
        assert not when.judge(oracle, f"{(start + 9) % 20} {(start + 9) % 20}")
        assert when.chance == pytest.approx(0.1)


def test_silence_has_no_beep_and_spoken_needles_are_judged_by_their_words() -> None:
    (silent,) = Heard(tuple(beeps(1000))).trials(Noise()(4), NO_NEEDLE, 0)
    assert silent.video.audio is not None
    assert not silent.video.audio.samples.any()
    assert silent.answer == "none"
    spoken = SoundNeedle(np.ones(500, np.float32), 1000, "he was not an ill disposed young man")
    (trial,) = Heard((spoken,)).trials(Noise()(4), 1.0, 0)
    assert trial.judge(Oracle([]), "He was not an ill-disposed young man.")
    assert not trial.judge(Oracle([]), "a young man")
    assert trial.video.audio is not None
    assert trial.video.audio.samples[0, -500:].all()


def test_times_are_those_of_the_video_and_not_of_the_file() -> None:
    late = replace(Noise()(10), start=100.0, end=110.0, timestamps=np.arange(10) + 100.5, duration=200.0)
    _, when = Heard(tuple(beeps(1000))).trials(late, 0.0, 0)

    @dataclass
    class Clock(Oracle):
        def spans(self, video: Video, reply: str) -> list[Span]:
            return [Span(video.start + 0.2, video.start + 0.4)]

    assert when.judge(Clock([]), "")
    assert when.video.audio is not None
    assert when.video.audio.start == 100.0


def test_names_that_the_haystack_gets_without_a_needle_are_not_held_against_a_reply() -> None:
    @dataclass
    class Sees(Oracle):
        """Takes the haystack for a 9, and says so or not."""

        always: str = ""

        def answer(self, video: Video, question: str) -> str:
            self.asked.append(len(video.frames))
            return ", ".join([*(n.answer for n in self.seen(video)), "9", *self.always])

    needles, job = list(DIGITS.needles), task("retrieve")
    (trial,) = job.trials(Noise()(8), 0.5, 2)
    model = Sees(needles)
    assert trial.judge(model, "2, 9")
    assert not trial.judge(model, "2, 3"), "nothing but a 9 is said of the haystack"
    assert not trial.judge(model, "9")
    assert trial.judge(model, "2")
    assert model.asked == [8], "the haystack is asked about once, and only if need be"
    assert share(model, job) == share(model, task("several")) == 1.0
    assert share(model, job, depths=(NO_NEEDLE,)) == 0.1
    lister = Sees(needles, always="".join(n.answer for n in needles))
    assert share(lister, job, depths=(NO_NEEDLE,)) == 1.0, "naming everything shows in the baseline"


@pytest.mark.parametrize("name", ["retrieve", "distract", "absent"])
def test_a_needle_alone_is_all_there_is(name: str) -> None:
    job = task(name)
    assert job.alone
    for trial in job.trials(Noise()(1), ALONE, 5):
        assert len(trial.video.frames) == 1
        assert trial.video.end == 1.0
    assert share(Oracle(list(DIGITS.needles)), job, 1, (ALONE,)) == 1.0


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: task("find"), ConfigError, "retrieve, distract"),
        (lambda: task("retrieve", mode="glue"), ConfigError, "insert, replace"),
        (lambda: task("distract", period=1), ConfigError, "period=1"),
        (lambda: task("order", k=11), ConfigError, "k=11"),
        (lambda: task("several", k=1), ConfigError, "k=1"),
        (lambda: task("count", k=5), ConfigError, "k=5 must be 2 to 4"),
        (lambda: task("several", DIGITS.first(2)), ConfigError, "k=3 must be 2 to 2"),
        (lambda: task("several", replace(DIGITS, several="")), DataError, "no question for task=several"),
        (lambda: task("absent", replace(DIGITS, needles=(replace(DIGITS.needles[0], presence=""),))), DataError, "needle 1 .*presence"),
        (lambda: task("distract", replace(DIGITS, needles=(replace(DIGITS.needles[0], lookalike=None),))), DataError, "lookalike"),
    ],
)  # fmt: skip
def test_what_a_task_cannot_do_is_named(make: Callable[[], Task], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


def test_facts_tell_measurements_apart() -> None:
    jobs = [task(name) for name in TASKS if name != "sound"] + [
        task("retrieve", mode="replace"), task("retrieve", digits(SIZE, seed=1)), task("retrieve", DIGITS.first(3)),
        task("distract", period=9), task("order", k=2), task("retrieve", CHOICES), Heard(tuple(beeps(1000))),
        Heard(tuple(beeps(1000, seed=1))), task("order", replace(DIGITS, order="Order?")),
    ]  # fmt: skip
    assert len({repr(job.facts) for job in jobs}) == len(jobs)
    assert task("order").facts == task("order").facts


def test_one_needle_in_one_cell_is_measured_with_everything_it_is_asked() -> None:
    cell = measure(Oracle(list(DIGITS.needles)), Noise()(5), task("retrieve", CHOICES), depth=0.5, needle=1, frames=5)
    assert cell.free == {"retrieve": ("1111",)}
    assert cell.chance == {"retrieve": 0.25}
    assert cell.tokens > 4 * 6
