"""The counters of `make bench-mmsp`, without the rivals: what is counted is what is planned, and the rows say what is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from eval.report import Row
from eval.world import run_world
from scripts.mmsp import jobs, reshard
from scripts.mmsp.rows import Findings, rows_of
from scripts.mmsp.tower import Shape

SHAPE = Shape(heads=4, kv=2, width=8, length=48, layers=2, inner=32, vocabulary=60)


def everything(rank: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """All jobs in this process, the wire left out: others use it."""
    return jobs.bytes_job(rank, SHAPE, 0, False), reshard.reshard_job(rank, 0, False), jobs.cost_job(rank, SHAPE, 0, 1)


@pytest.fixture(scope="module")
def found() -> Findings:
    each = run_world(everything, 2)
    bytes_, moved, cost = zip(*each, strict=True)
    key = (2, SHAPE.heads, SHAPE.kv)
    found = Findings(False, {key: jobs.together(list(bytes_))}, {key: SHAPE.unit})
    found.reshard[2], found.cost[2] = reshard.together(list(moved)), jobs.together(list(cost))
    return found


@pytest.fixture(scope="module")
def rows(found: Findings) -> dict[str, Row]:
    return {r["name"]: r for r in rows_of(found)}


def test_bytes_are_counted_to_the_byte_and_nothing_is_off(found: Findings) -> None:
    systems = found.bytes[2, SHAPE.heads, SHAPE.kv]
    ours = {name: one for name, one in systems.items() if name.startswith("ours")}
    assert len(ours) == 4
    for name, one in ours.items():
        assert (one["forward"]["counted"], one["both"]["counted"]) == pytest.approx(one["formula"], abs=0), name
        assert max(one["logit_error"], one["gradient_error"]) < 1e-5, name


def test_the_all_reduce_pattern_sends_more_and_loses_gradients(found: Findings, rows: dict[str, Row]) -> None:
    length, width = sum(reshard.MADE[2]), reshard.WIDTHS[1]
    for order in reshard.ORDERS:
        ours, pattern = (found.reshard[2][f"{order} {way}"] for way in ("ours", "all-reduce"))
        assert ours["counted"] == ours["least"] > 0
        assert pattern["counted"] == 2 * length * width * 4  # 2 (P - 1) times the whole
        assert ours["gradient_error"] < 1e-6 and pattern["gradient_error"] > 0.1
        assert rows[f"re-shard to {order} tokens, bytes, ours / all-reduce pattern, P = 2"]["holds"]


def test_less_is_kept_and_time_is_taken(found: Findings) -> None:
    systems = found.cost[2]
    alone = systems["one process"]
    for name, one in systems.items():
        if name.startswith("ours"):
            assert one["saved"] < 0.8 * alone["saved"], name
            assert one["seconds"][0] > 0, name


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="the rival is installed")
def test_a_rival_that_is_not_installed_says_so(rows: dict[str, Row]) -> None:
    bar = rows["saved activations per process, ours / DeepSpeed, P = 2"]
    assert bar["value"] is None and bar["holds"] is None
    assert "No module named 'deepspeed'" in bar["setting"]["reason"]


def test_the_words_of_an_error_name_no_path_of_this_machine(tmp_path: Path) -> None:
    said = jobs.told(OSError(f"cannot read {tmp_path}/inner/file.py\nat all"))
    assert said == "OSError: cannot read file.py at all"
