"""eval/shapes.py: an oracle scores 1, guessing scores about chance, and questions come from the held-out split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_recipes.synth.shapes import HELD_OUT, LEVELS, Turn
from data_recipes.synth.shapes_phrasings import PHRASINGS
from eval.report import Row
from eval.shapes import HEARD, _one_answer, evaluate, questions
from vlm.media import probe
from vlm.time import Span

SHORT = replace(LEVELS["short"], seconds=(2.0, 3.0), fps=(8, 8), digit=0.5, beeps=0.75)


def rows_by_name(ask: Any, n: int = 12) -> dict[str, Row]:
    rows = evaluate(None, n=n, seed=1, level=SHORT, num_frames=8, ask=ask)  # type: ignore[arg-type]
    return {r["name"]: r for r in rows}


def test_an_oracle_scores_one() -> None:
    def oracle(path: Path, turn: Turn) -> tuple[str, list[Span]]:
        info = probe(path)
        assert info.codec == "h264" and info.has_audio is (turn.kind in HEARD)
        return f"{turn.answer.capitalize()}.", list(turn.spans)

    rows = rows_by_name(oracle)
    expected = {"naming accuracy", "colour accuracy", "count accuracy", "presence accuracy", "span mIoU"}
    expected |= {"beep count accuracy", "beep span mIoU"}
    assert expected | {f"{name}, known pairs" for name in expected} <= set(rows)
    assert all(r["value"] == pytest.approx(1.0) for r in rows.values())
    assert rows["span mIoU"]["holds"] is True


def test_a_mute_model_scores_nothing_and_holds_nothing() -> None:
    rows = rows_by_name(lambda path, turn: ("", []), n=3)
    assert all(r["value"] == 0.0 for r in rows.values())
    assert rows["naming accuracy"]["holds"] is False


def test_chance_is_the_commonest_answer_where_that_is_more() -> None:
    assert _one_answer([("count", "one"), ("count", "one"), ("count", "two"), ("shape", "a star")]) == 0.75
    rows = rows_by_name(lambda path, turn: ("one", []))
    assert rows["count accuracy"]["value"] <= rows["count accuracy"]["setting"]["chance"] + 0.001 <= 0.9


def test_guessing_presence_scores_about_chance() -> None:
    rng = np.random.default_rng(0)
    turns = [t for i in range(60) for t in questions(0, i, level=SHORT, num_frames=8)[1] if t.kind == "presence"]
    right = [("yes", "no")[rng.integers(2)] == t.answer for t in turns]
    assert len(turns) > 100
    assert 0.35 < np.mean(right) < 0.65
    assert {t.choices for t in turns} == {2}


def test_questions_are_held_out_in_words_and_in_shapes() -> None:
    for index in range(40):
        split = ("heldout", "train")[index % 2]
        scene, turns = questions(0, index, split=split, level=SHORT, num_frames=8)
        assert bool(HELD_OUT & {(a.shape, a.colour) for a in scene.appearances()}) is (split == "heldout")
        starts = {p.split("{")[0] for t in turns for p in PHRASINGS[t.kind][1]}
        assert all(any(t.question.startswith(start) for start in starts) for t in turns)
