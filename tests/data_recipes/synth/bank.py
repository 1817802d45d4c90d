"""A small real feature bank that several test files share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_recipes.synth.features import FeatureBank, Rendering, _build, plan
from vlm.errors import CheckpointError, DataError, MissingDependencyError

ARRANGED = ("middle", "left", "right", "two", "three", "pair", "triple", "empty")


def small_plan() -> tuple[Rendering, ...]:
    """Nine single pictures and three of every other arrangement, of the split ``class``."""
    try:
        rows = plan("class")
    except DataError as error:
        pytest.skip(str(error))
    taken = [[r for r in rows if r.arrangement == a][: 9 if a == "middle" else 3] for a in ARRANGED]
    return tuple(r for group in taken for r in group)


def small_bank(folder: Path) -> FeatureBank:
    """Features of `small_plan`, computed by the real tower."""
    rows = small_plan()
    path = folder / "features.f16"
    try:
        _build(rows, path, folder / "done.txt")
    except (CheckpointError, MissingDependencyError) as error:
        pytest.skip(str(error))
    features = np.memmap(path, np.float16, mode="r", shape=(len(rows), 49, 1280))
    return FeatureBank(features, rows, features.astype(np.float32).mean(1))
