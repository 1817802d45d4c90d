"""Made-up pictures of the same kind: they share part of their direction with the real one, and stay where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_recipes.synth.features import FeatureBank
from data_recipes.synth.imagenet import PrototypeMaps
from data_recipes.synth.smol import SmolDataset
from data_recipes.synth.variations import SINGLE, Variations
from tests.data_recipes.synth.bank import small_bank


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> FeatureBank:
    return small_bank(tmp_path_factory.mktemp("bank"))


@pytest.fixture(scope="module")
def variations(bank: FeatureBank) -> Variations:
    return Variations(PrototypeMaps(bank))


def test_a_variation_keeps_part_of_the_picture(variations: Variations) -> None:
    bank, background = variations.bank, variations.maps.background
    row = int(bank.where("middle")[0])
    real = bank.pooled[row] - background
    rng = np.random.default_rng(0)
    drawn = np.stack([variations.draw((row,), rng) for _ in range(60)])
    assert drawn.shape == (60, 49, 1280) and drawn.dtype == np.float16
    shifts = drawn.astype(np.float32).mean(1) - background
    cosines = shifts @ real / np.linalg.norm(shifts, axis=1) / np.linalg.norm(real)
    assert (
        0.4 < cosines.min() < 0.9 and cosines.std() > 0.03 and cosines.max() < 0.9999
    )  # few pictures here, so all are alike
    assert np.linalg.norm(shifts, axis=1).mean() == pytest.approx(0.9 * np.linalg.norm(real), rel=0.15)
    again = np.stack([variations.draw((row,), rng) for rng in [np.random.default_rng(0)] for _ in range(3)])
    assert np.array_equal(again, drawn[:3])


def test_it_stays_where_the_picture_is(variations: Variations) -> None:
    bank = variations.bank
    left, right = int(bank.where("left")[0]), int(bank.where("right")[0])
    rng = np.random.default_rng(1)

    def columns(rows: tuple[int, ...]) -> np.ndarray:
        maps = np.stack([variations.draw(rows, rng) for _ in range(12)]).astype(np.float32)
        energy = np.square(maps - variations.maps.background).sum(-1).mean(0).reshape(7, 7)
        return np.asarray(energy.sum(0))

    alone, other, both = columns((left,)), columns((right,)), columns((left, right))
    assert alone[:3].sum() > 1.3 * alone[4:].sum() and other[4:].sum() > 1.3 * other[:3].sum()
    assert min(both[:3].sum(), both[4:].sum()) > 0.6 * max(both[:3].sum(), both[4:].sum())


def test_conversations_vary_single_pictures_and_compose_pairs(bank: FeatureBank, tmp_path: Path) -> None:
    options: dict[str, object] = {"bank": bank, "shots": (1, 4), "classes": 0.0}
    plain = SmolDataset("class", 40, **options)  # type: ignore[arg-type]
    varied = SmolDataset("class", 40, varied=1.0, **options)  # type: ignore[arg-type]
    rows = {r.tobytes() for r in np.asarray(bank.features)}
    same = [f.tobytes() in rows for i in range(40) for f in plain[i].messages[0]["content"][0]["features"]]
    other = [f.tobytes() in rows for i in range(40) for f in varied[i].messages[0]["content"][0]["features"]]
    assert all(same) and not all(other) and np.mean(other) < 0.3
    assert set(SINGLE) < {r.arrangement for r in bank.rows}
    nouns = {i.name.noun for r in bank.rows for i in r.items}
    for i in range(40):
        for shot in varied[i].meta["clip"].shots:
            assert {item.name.noun for item in shot.items} <= nouns
