"""The feature bank and the maps made from the classifier, on a small real bank (32 pictures through the real tower)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_recipes.synth.features import FeatureBank, Rendering, _build, bank_folder, classifier, extract, plan
from data_recipes.synth.imagenet import ARRANGEMENTS, PrototypeMaps, class_of_name, class_prototypes, imagenet_classes
from tests.data_recipes.synth.bank import ARRANGED, small_bank, small_plan
from vlm.errors import ConfigError


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> FeatureBank:
    return small_bank(tmp_path_factory.mktemp("bank"))


def test_rows_are_the_features_of_the_pictures(bank: FeatureBank) -> None:
    for i in (0, 17):
        expected = extract(bank.rows[i].draw()[None])[0].astype(np.float32)
        np.testing.assert_allclose(bank.features[i].astype(np.float32), expected, atol=0.02)
    np.testing.assert_allclose(bank.pooled, bank.features.astype(np.float32).mean(1), atol=1e-4)
    assert set(bank.by_arrangement) == set(ARRANGED)


def test_build_goes_on_where_it_stopped(bank: FeatureBank, tmp_path: Path) -> None:
    path, count = tmp_path / "features.f16", tmp_path / "done.txt"
    half = np.memmap(path, np.float16, mode="w+", shape=bank.features.shape)
    half[:16] = 1.0  # stands for finished work: it must be left alone
    half.flush()
    count.write_text("16")
    _build(bank.rows, path, count)
    built = np.memmap(path, np.float16, mode="r", shape=bank.features.shape)
    assert (built[:16] == 1.0).all()
    np.testing.assert_allclose(built[16:].astype(np.float32), bank.features[16:].astype(np.float32), atol=0.02)
    assert count.read_text() == str(len(bank.rows))


def test_plan_is_fixed_and_splits_do_not_mix() -> None:
    small_plan()  # skips without the pictures
    shown = {s: {i.picture for r in plan(s) for i in r.items} for s in ("picture", "class", "train")}
    assert not shown["train"] & (shown["picture"] | shown["class"])
    again: tuple[Rendering, ...] = plan.__wrapped__("class")
    assert again == plan("class")
    with pytest.raises(ConfigError, match="train"):
        plan("test")


def test_imagenet_names() -> None:
    classes = imagenet_classes()
    assert len({c.name.noun for c in classes}) == 1000
    assert [classes[i].name.phrase for i in (948, 517, 639, 924)] == [
        "a Granny Smith",
        "a construction crane",
        "a tank suit",
        "guacamole",
    ]
    assert class_of_name()["orca"] == class_of_name()["killer whale"] == 148


def test_prototypes_are_read_back_by_the_classifier() -> None:
    """With an isotropic covariance the shift is along the classifier's own row, so most classes must be read at once."""
    rng = np.random.default_rng(0)
    pooled = rng.normal(0.5, 0.3, (3000, 1280)).astype(np.float32)
    weight, bias = classifier()
    read = (class_prototypes(pooled, step=40.0) @ weight.T + bias).argmax(1)
    assert (read == np.arange(1000)).mean() > 0.98


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_maps_have_the_scale_of_the_prototypes_and_read_as_their_class(bank: FeatureBank, arrangement: str) -> None:
    maps = PrototypeMaps(bank, noise=0.0)
    weight, bias = classifier()
    rng = np.random.default_rng(1)
    ids = np.arange(0, 1000, 50)
    drawn = np.stack([maps.draw(int(c), arrangement, rng) for c in ids]).astype(np.float32)
    assert drawn.shape == (20, 49, 1280)
    assert drawn.min() >= 0.0 and drawn.max() <= 6.0
    moved = np.linalg.norm(drawn.mean(1) - maps.background, axis=1)
    meant = np.linalg.norm(maps.prototypes[ids] - maps.background, axis=1)
    assert 0.4 < np.median(moved / meant) < 1.6
    logits = drawn.mean(1) @ weight.T + bias
    ranks = (logits > logits[np.arange(20), ids][:, None]).sum(1)
    assert np.median(ranks) < 100 and ranks.max() < 400  # of 1000; nine pictures span few directions


def test_prototypes_of_the_training_bank_are_all_read_back() -> None:
    small_plan()
    if not (bank_folder("train") / "pooled.npy").exists():
        pytest.skip("the bank of the training pictures is not built here (python -m data_recipes.synth.features)")
    maps, (weight, bias) = PrototypeMaps(), classifier()
    assert ((maps.prototypes @ weight.T + bias).argmax(1) == np.arange(1000)).all()
    rng = np.random.default_rng(0)
    for arrangement in ARRANGEMENTS:
        ids = rng.integers(0, 1000, 30)
        pooled = np.stack([maps.draw(int(c), arrangement, rng).astype(np.float32).mean(0) for c in ids])
        assert ((pooled @ weight.T + bias).argmax(1) == ids).mean() > 0.85, arrangement


def test_left_and_right_of_a_pair_differ(bank: FeatureBank) -> None:
    maps, rng = PrototypeMaps(bank, noise=0.0, rest=0.0), np.random.default_rng(2)
    weight, _ = classifier()
    a, b = 948, 292  # a green apple, a tiger
    grid = np.stack([maps.draw_pair(a, b, rng).astype(np.float32) for _ in range(8)]).mean(0).reshape(7, 7, 1280)
    left, right = grid[:, :3].mean((0, 1)), grid[:, -3:].mean((0, 1))
    assert (left - right) @ (weight[a] - weight[b]) > 0


def test_unknown_arrangement(bank: FeatureBank) -> None:
    with pytest.raises(ConfigError, match="full"):
        PrototypeMaps(bank).draw(0, "above", np.random.default_rng(0))
