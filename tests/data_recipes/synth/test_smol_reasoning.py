"""Questions that need reasoning about clips of pictures: a scan of the clip gives the same times, held-out kinds stay out of training."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_recipes.sample import rng_for
from data_recipes.synth.clips import Clip, Shot, Sound
from data_recipes.synth.smol import SmolDataset, conversations
from data_recipes.synth.smol_questions import Asker, Turn
from data_recipes.synth.smol_reasoning import HELD_OUT_KINDS, PHRASINGS, reasons
from tests.data_recipes.synth.bank import small_plan
from vlm.errors import ConfigError

SIDES = {"left": "on the left", "right": "on the right"}


def clip(seed: int) -> Clip:
    """Three to six shots of a split that training never shows, one of them with a voice, some of nothing."""
    rows, rng = small_plan(), rng_for(3, seed)
    lengths = rng.uniform(1, 9, int(rng.integers(3, 7))).round(1)
    ends = np.cumsum(lengths).round(1)
    chosen = [rows[int(i)] for i in rng.choice(len(rows), len(lengths), replace=False)]
    shots = [
        Shot(float(end - length), float(end), row.items, row.background)
        for row, length, end in zip(chosen, lengths, ends, strict=True)
    ]
    speaks = int(rng.integers(len(shots)))
    shots[speaks] = replace(shots[speaks], sound=Sound(Path(), shots[speaks].start, "Some words.", 0.5))
    return Clip(tuple(shots))


def asked(seed: int, *, heldout: bool = True) -> list[Turn]:
    return reasons(Asker(clip(seed), [], heldout=heldout), rng_for(4, seed), most=20)


def nouns_at(one: Clip, t: float) -> list[str]:
    return [i.name.noun for i in one.shot_at(t).items]


def holds(kind: str, shot: Shot, question: str) -> bool:
    nouns = [i.name.noun for i in shot.items]
    if kind == "several":
        return len(set(nouns)) < len(nouns)
    if kind == "different":
        return len(set(nouns)) > 1
    return bool(nouns) and all(SIDES.get(i.place, "-") in question for i in shot.items)


def test_training_asks_everything_but_the_held_out_kinds() -> None:
    found = Counter(t.kind.removeprefix("reason_") for i in range(250) for t in asked(i, heldout=False))
    assert set(found) == set(PHRASINGS) - set(HELD_OUT_KINDS) and min(found.values()) >= 5
    found = Counter(t.kind.removeprefix("reason_") for i in range(250) for t in asked(i))
    assert set(found) == set(PHRASINGS) and min(found.values()) >= 5


def test_held_out_phrasings_are_others() -> None:
    for train, held_out in PHRASINGS.values():
        assert train and held_out and not set(train) & set(held_out)


def test_answers_are_what_the_clip_shows() -> None:
    """Each kind is checked against a scan of the clip in steps of a tenth of a second."""
    checked: Counter[str] = Counter()
    for seed in range(120):
        one = clip(seed)
        steps = [round(0.1 * i + 0.05, 2) for i in range(round(10 * one.duration))]
        for turn in asked(seed):
            kind, (span,) = turn.kind.removeprefix("reason_"), turn.spans
            inside = [t for t in steps if span[0] <= t < span[1]]
            named = re.findall(r"the (?:two |three )?([\w ’'.-]+?)(?: and the |\?|$)", turn.question)
            assert {round(float(t), 1) for t in re.findall(r"\{t:([\d.]+)\}", turn.answer)} == {
                round(s, 1) for s in span
            }
            assert len({tuple(nouns_at(one, t)) for t in inside}) == 1 and nouns_at(one, inside[0])
            assert all(i.name.noun in turn.answer or i.name.plural in turn.answer for i in one.shot_at(inside[0]).items)
            before, after = one.shot_at(max(0.0, span[0] - 0.05)), one.shot_at(span[1] + 0.01)
            lengths = {s: s.end - s.start for s in one.shots}
            if kind in ("first", "last"):
                assert inside[0] == steps[0] if kind == "first" else inside[-1] == steps[-1]
            elif kind in ("longest", "shortest"):
                best = (max if kind == "longest" else min)(lengths.values())
                assert span[1] - span[0] == pytest.approx(best)
            elif kind in ("several", "different", "side"):
                assert [s.start for s in one.shots if holds(kind, s, turn.question)] == [span[0]]
            elif kind in ("next", "before", "between"):
                sides = {"next": [before], "before": [after], "between": [before, after]}[kind]
                around = {w for s in sides for i in s.items for w in (i.name.noun, i.name.plural)}
                assert named and set(named) <= around, turn.question
            else:
                speaking = one.shot_at(inside[0]) if kind == "heard" else before
                assert speaking.sound is not None
            checked[kind] += 1
    assert set(checked) == set(PHRASINGS)


def test_conversations_mix_them_with_other_kinds() -> None:
    kinds = ("reason_first", "reason_next", "when")
    data = SmolDataset("picture", 40, medium="file", kinds=kinds, shots=(2, 5), turns=(4, 4))
    found: Counter[str] = Counter()
    for i in range(40):
        asker = Asker(data.clip(i), [], None, True)
        found.update(t.kind for t in data._turns(asker, rng_for(0, i), 4))
    assert set(found) == set(kinds)
    with pytest.raises(ConfigError, match="reason_first"):
        conversations("train", size=1, kinds=("reason_nothing",))


def test_a_clip_that_gives_nothing_to_reason_about_is_asked_when() -> None:
    data = SmolDataset("picture", 20, medium="file", kinds=("reason_heard",), shots=(2, 3), speech=0.0)
    turns = data._turns(Asker(data.clip(0), [], None, True), rng_for(0, 0), 3)
    assert turns and {t.kind for t in turns} == {"when"}
