"""Questions that need reasoning: their answers follow from what the frames show, held-out kinds stay out of training, nothing is random."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from data_recipes.sample import rng_for
from data_recipes.synth.shapes_reasoning import HELD_OUT_KINDS, PHRASINGS, Reasoner
from data_recipes.synth.shapes_scene import Scene
from data_recipes.synth.shapes_world import LEVELS, random_scene
from vlm.errors import ConfigError
from vlm.time import Span


def scene(seed: int, *, split: str = "heldout", level: str = "twenty") -> Scene:
    return random_scene(rng_for(7, seed), LEVELS[level], split=split, size=64, num_frames=32)


def asked(split: str, count: int = 150) -> Counter[str]:
    found: Counter[str] = Counter()
    for i in range(count):
        for turn in Reasoner(scene(i, split=split), rng_for(1, i), split=split, sound=True).every():
            found[turn.kind.removeprefix("reason_")] += 1
    return found


def test_training_asks_everything_but_the_held_out_kinds() -> None:
    found = asked("train")
    assert set(found) == set(PHRASINGS) - set(HELD_OUT_KINDS) and min(found.values()) >= 5
    assert set(asked("heldout")) == set(PHRASINGS)


def test_held_out_phrasings_are_others() -> None:
    for train, held_out in PHRASINGS.values():
        assert train and held_out and not set(train) & set(held_out)


def shown(one: Scene, noun: str, t: float) -> bool:
    """Whether a thing is on screen, by the scene's own drawing rule."""
    return any(
        f"{thing.colour_at(t)} {thing.shape}" == noun and thing.visible.start <= t < thing.visible.end
        for thing in one.shapes
    )


def nouns_at(one: Scene, t: float) -> list[str]:
    return [f"{x.colour_at(t)} {x.shape}" for x in one.shapes if x.visible.start <= t < x.visible.end]


def test_answers_are_what_the_clip_shows() -> None:
    """Each kind is checked against a plain scan of the clip in steps of a frame."""
    checked: Counter[str] = Counter()
    for i in range(70):
        one = scene(i)
        times = np.arange(0, one.duration, 1 / one.fps) + 0.25 / one.fps
        starts: dict[str, float] = {}
        seen: dict[str, float] = {}
        for t in times:
            for noun in nouns_at(one, float(t)):
                starts.setdefault(noun, float(t))
                seen[noun] = seen.get(noun, 0.0) + 1 / one.fps
        for turn in Reasoner(one, rng_for(2, i), split="heldout", sound=True).every():
            kind, (span,) = turn.kind.removeprefix("reason_"), turn.spans
            because = turn.answer.split(": ", 1)[1]
            inside = [float(t) for t in times if span.start <= t < span.end]
            if kind == "last":
                noun = max(starts, key=lambda n: starts[n])
                assert noun in because and all(shown(one, noun, t) for t in inside)
            elif kind in ("longest", "shortest"):
                noun = (max if kind == "longest" else min)(seen, key=lambda n: seen[n])
                assert noun in because and span.length == pytest.approx(seen[noun], abs=1.5 / one.fps)
            elif kind == "alone":
                lonely = [t for t in times if len(nouns_at(one, float(t))) == 1]
                assert np.allclose([lonely[0], lonely[-1]], [span.start, span.end], atol=1.5 / one.fps)
            elif kind in ("together", "after_gone"):
                names = turn.question.split("the ")
                words = [" ".join(n.split()[:2]).rstrip("?,") for n in names[1:]]
                both = [t for t in times if shown(one, words[0], t) and shown(one, words[1], t) is (kind == "together")]
                if kind == "after_gone":
                    both = [t for t in both if t >= max(x for x in times if shown(one, words[1], x))]
                assert np.allclose([both[0], both[-1]], [span.start, span.end], atol=1.5 / one.fps)
            elif kind == "beep_next":
                assert span in [b.span for b in one.beeps]
            else:
                continue
            checked[kind] += 1
    assert min(checked[k] for k in ("last", "longest", "shortest", "alone", "together", "after_gone", "beep_next")) >= 2


def test_next_and_before_are_neighbours() -> None:
    for i in range(100):
        one = scene(i)
        order = sorted({a.noun: a.span.start for a in one.appearances()}.items(), key=lambda pair: pair[1])
        for turn in Reasoner(one, rng_for(3, i), split="heldout", kinds=("next", "before")).every():
            asked_about = turn.question.rsplit("the ", 1)[1].rstrip("?")
            place = [noun for noun, _ in order].index(asked_about)
            wanted = order[place + (1 if turn.kind == "reason_next" else -1)]
            assert turn.spans[0].start == wanted[1] and wanted[0] in turn.answer


def test_times_are_those_of_the_frames_if_asked() -> None:
    one = scene(4)
    times = one.sample_times(8)
    edges = [0.0, *((times[1:] + times[:-1]) / 2), one.duration]
    for turn in Reasoner(one, rng_for(4), split="train", times=times, kinds=("last", "longest", "together")).every():
        assert all(min(abs(t - e) for e in edges) < 1e-6 for s in turn.spans for t in (s.start, s.end))


def test_a_seed_says_everything() -> None:
    one = scene(5)
    first, second = ([t.question for t in Reasoner(one, rng_for(6), split="heldout").turns(9)] for _ in range(2))
    assert first == second
    assert all(isinstance(s, Span) for t in Reasoner(one, rng_for(6), split="heldout").turns(9) for s in t.spans)
    with pytest.raises(ConfigError, match="'vision' of reasoning"):
        Reasoner(one, rng_for(6), split="train", kinds=("vision",))
    with pytest.raises(ConfigError, match="split"):
        Reasoner(one, rng_for(6), split="test")
