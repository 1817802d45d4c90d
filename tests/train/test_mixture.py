"""A mixture keeps its shares, its order and its parts' lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from train.data import Order
from train.mixture import Mixture, mix
from vlm.errors import ConfigError

CLIPS = {"call": "data_recipes.synth.needles:haystacks", "args": {"split": "train", "frames": [4, 8], "size": 50}}
TEXTS = {"call": "data_recipes.synth.needles:transcripts", "args": {"split": "train", "tokens": [64, 256], "size": 30}}


def test_shares_and_order_depend_on_the_seed_only() -> None:
    mixture, again, other = (
        mix(parts={"clips": {**CLIPS, "weight": 3}, "texts": {**TEXTS, "weight": 1}}, seed=seed, size=2000)
        for seed in (0, 0, 1)
    )
    picks = np.array([mixture.part_of(i) for i in range(2000)])
    assert abs((picks == 0).mean() - 0.75) < 0.03
    assert picks.tolist() == [again.part_of(i) for i in range(2000)] != [other.part_of(i) for i in range(2000)]
    for index in (0, 1, 77):
        prefix = ("haystack", "transcript")[picks[index]]
        assert mixture[index].id == again[index].id and mixture[index].id.startswith(prefix)
        assert mixture[index].id.endswith(f"-{index % len(mixture.parts[picks[index]])}")
    with pytest.raises(IndexError):
        mixture[2000]


def test_lengths_are_those_of_the_items_and_group_batches() -> None:
    mixture = mix(parts={"clips": CLIPS, "texts": TEXTS}, seed=0, size=200)
    for index in (0, 3, 150):
        part = mixture.part_of(index)
        assert mixture.lengths[index] == mixture.parts[part].lengths[index % len(mixture.parts[part])]
    order = Order(200, (0,), batch_size=4, lengths=mixture.lengths)
    batches = mixture.lengths[order.epoch(0)].reshape(-1, 4)
    assert np.ptp(batches, axis=1).mean() < 0.1 * np.ptp(mixture.lengths)
    unknown = Mixture((mixture.parts[0], [1, 2, 3]), (0.5, 0.5), 0, 10)
    assert not hasattr(unknown, "lengths")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "weights"),
        ({"a": {**CLIPS, "weight": -1}}, "weights"),
        ({"a": {**CLIPS, "weight": 0}}, "weights"),
        ({"a": {"args": {}}}, "parts.a"),
        ({"a": {**CLIPS, "share": 1}}, "parts.a"),
        ({"a": {"call": "data_recipes.synth.needles:hay"}}, "near"),
    ],
)
def test_a_wrong_part_is_named(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mix(parts=parts, seed=0)
