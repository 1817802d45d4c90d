"""`scripts/curriculum.py`: every order trains on the same samples, and a raised rotary base stays raised."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.curriculum import PAPER, recipe_for, trained
from train.recipe_files import recipe_path
from train.stages import parse_recipe

RECIPE = yaml.safe_load(recipe_path("longvila_nano").read_text(encoding="utf-8"))


def samples(recipe: dict[str, Any]) -> Counter[str]:
    """Expected samples by what makes them."""
    found: Counter[str] = Counter()
    for stage in recipe["stages"]:
        data, count = stage["data"], stage["steps"] * stage["batch_size"]
        parts = data["args"].get("parts", {"text": {**data, "weight": 1.0}})
        total = sum(part["weight"] for part in parts.values())
        for part in parts.values():
            found[repr((part["call"], part["args"]))] += count * part["weight"] / total
    return found


@pytest.mark.parametrize("order", [order for order in PAPER if order != "1-2-3"])
def test_every_order_sees_the_same_samples(order: str) -> None:
    changed = recipe_for(order, RECIPE, 1.0)
    assert samples(changed) == pytest.approx(samples(RECIPE), rel=0.01)
    recipe = parse_recipe(changed)
    assert [s.rope_theta is not None for s in recipe.stages] == sorted(s.rope_theta is not None for s in recipe.stages)


def test_a_shorter_run_has_shorter_stages() -> None:
    full, short = (recipe_for("1-2-4-(3+5)", RECIPE, scale) for scale in (1.0, 0.1))
    for a, b in zip(full["stages"], short["stages"], strict=True):
        assert b["steps"] == max(2, round(0.1 * a["steps"])) and b["warmup"] <= max(1, b["steps"] // 4)


def test_orders_that_begin_alike_share_what_they_begin_with(tmp_path: Path) -> None:
    options = argparse.Namespace(runs=tmp_path, scale=0.001)
    first = trained("1", 0, options)
    written = (first / "model.safetensors").read_bytes()
    second = trained("1-2", 0, options)
    assert (first / "model.safetensors").read_bytes() == written and first.parent.name == "1"
    history = (first.parent / "history.jsonl").read_text().splitlines()
    assert len(history) == 2, "the first stage was trained once"
    recipe = yaml.safe_load((second.parent / "recipe.yaml").read_text())
    assert recipe["model"]["args"]["run"] == str(first) and [s["name"] for s in recipe["stages"]] == ["pretrain"]
