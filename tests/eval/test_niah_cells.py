"""Cells: outcomes survive a file, intervals cover and shrink, summaries count what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.niah_cells import Cell, Marks, bootstrap, cells_in, interval, plot, rows_of, totals
from eval.niah_trials import ALONE, NO_NEEDLE


def cell(depth: float, *outcomes: str, frames: int = 8, kind: str = "retrieve") -> Cell:
    return Cell(frames, depth, {kind: outcomes}, {kind: outcomes}, {kind: 0.1}, 40)


def test_cells_are_the_same_after_a_file() -> None:
    mixed = Cell(8, 0.2, {"present": ("1", "", "0"), "absent": ("11", "0", "1")}, {"present": ("0", "", "0"),
                 "absent": ("10", "0", "1")}, {"present": 0.5, "absent": 1 / 3}, 77)  # fmt: skip
    assert Cell.from_json(json.loads(json.dumps(mixed.to_json()))) == mixed
    grid = [cell(ALONE, "1", "0", "1"), cell(NO_NEEDLE, "0", "0", "0"), mixed, cell(1.0, "1111", "0000", "0001")]
    rows = json.loads(json.dumps(rows_of(grid, seed=0)))
    assert cells_in(rows) == grid


def test_damaged_cells_are_measured_again() -> None:
    rows = rows_of([cell(0.0, "1", "0"), cell(1.0, "1", "1")], seed=0)
    for row in rows:
        if row["setting"].get("depth") == 1.0 and "free" in row["setting"]:
            row["setting"]["free"] = {"retrieve": "1 x"}
    assert [c.depth for c in cells_in(rows)] == [0.0]


def test_needles_are_added_one_after_another() -> None:
    both = cell(0.0, "1") + cell(0.0, "01", kind="other") + cell(0.0, "0")
    assert both.free == {"retrieve": ("1", "", "0"), "other": ("", "01", "")}
    assert both.count("free") == (2, 4)
    assert both.count("free", "other") == (1, 2)


def test_the_bootstrap_covers_and_shrinks() -> None:
    rng, widths = np.random.default_rng(1), {}
    for needles in (10, 40):
        covered, width = 0, []
        for trial in range(200):
            known = rng.random(needles) < 0.7  # a needle is known everywhere or nowhere
            low, high = bootstrap(6 * known, np.full(needles, 6), seed=trial, draws=400)
            covered += low <= 0.7 <= high
            width.append(high - low)
        widths[needles] = np.mean(width)
        assert 0.85 <= covered / 200 <= 1.0, "95 % nominal; the percentile bootstrap of few needles covers less"
    assert widths[40] == pytest.approx(widths[10] / 2, rel=0.2)  # like one over the root of the number
    assert bootstrap(np.array([1, 0, 1]), np.ones(3), seed=3) == bootstrap(np.array([1, 0, 1]), np.ones(3), seed=3)


def test_trials_of_one_needle_are_not_independent() -> None:
    """Half of 240 are right, once because half of the needles are never found, once by a coin for each trial."""
    coins = np.random.default_rng(2).integers(0, 2, (24, 10)).astype(str)
    clustered = [cell(d / 23, *("1" if i % 2 else "0" for i in range(10))) for d in range(24)]
    spread = [cell(d / 23, *coins[d].tolist()) for d in range(24)]
    wide, narrow = (interval(c, "free", None, 0) for c in (clustered, spread))
    assert wide["interval"] == narrow["interval"] == "bootstrap over needles"
    assert wide["high"] - wide["low"] > 40
    assert narrow["high"] - narrow["low"] < 15


def test_where_drawing_again_says_nothing_wilson_does() -> None:
    assert interval([cell(0.0, *"1" * 10)], "free", None, 0) == {"low": 72.2, "high": 100.0}
    assert interval([cell(d / 5, *"1" * 10) for d in range(6)], "free", None, 0) == {"low": 94.0, "high": 100.0}


def test_summaries_count_what_they_say() -> None:
    grid = [cell(ALONE, "1", "1", frames=1), cell(NO_NEEDLE, "0", "1"), cell(0.0, "1", "0"), cell(1.0, "1", "1"),
            cell(0.0, "0", "0", frames=16), cell(1.0, "0", "1", frames=16)]  # fmt: skip
    rows = {r["name"]: r for r in rows_of(grid, seed=0, target=60.0)}
    assert rows["free: all cells"]["value"] == 50.0
    assert rows["free: all cells"]["target"] == ">= 60"
    assert rows["free: all cells"]["holds"] is False
    assert rows["forced: all cells"]["target"] is None
    assert rows["free: depth 1.00, the needle is the last frame"]["setting"]["trials"] == 4
    assert rows["free: 16 frames"]["value"] == 25.0
    assert rows["free: no needle"]["value"] == 50.0
    assert rows["free: needle alone"]["value"] == 100.0
    assert rows["chance: guessing among the answers"]["value"] == pytest.approx(10.0)
    assert totals(grid, "free") == (7, 12)
    assert not any("alarm" in name for name in rows)


def test_false_alarms_are_wrong_answers_about_what_is_not_there() -> None:
    asked: Marks = {"present": ("1", "1"), "absent": ("0", "1")}
    inside = Cell(8, 0.0, asked, asked, {"present": 0.5, "absent": 0.5}, 9)
    rows = {r["name"]: r for r in rows_of([cell(NO_NEEDLE, "1", "0", kind="absent"), inside], seed=0)}
    assert rows["free: false alarms"]["value"] == 50.0
    assert rows["free: false alarms"]["setting"]["trials"] == 4
    assert rows["free: all cells, present"]["value"] == 100.0
    assert rows["chance: guessing, absent"]["value"] == 50.0


def test_heat_maps_show_unmeasured_cells_in_grey(tmp_path: Path) -> None:
    plot(tmp_path / "half.png", [cell(0.0, "1"), cell(1.0, "0"), cell(0.0, "1", frames=16)], "oracle")
    plot(tmp_path / "whole.png", [cell(d, "1", frames=n) for n in (8, 16) for d in (0.0, 1.0)], "oracle")
    greys = []
    for name in ("half", "whole"):
        picture = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))
        greys.append(int((picture == (211, 211, 211)).all(-1).sum()))
    assert greys[0] > 1000 > 10 * greys[1]
