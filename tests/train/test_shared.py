"""A stage that packs its samples, or shares them between processes, learns what one process learns from a padded batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.harness import history, run, run_world
from tests.train.test_vlm import spec
from train.run import run as run_here
from train.stages import Parallel, Recipe, parse_recipe
from vlm.errors import ConfigError


def shared(out: Path, *, packed: bool = False, parallel: Parallel | None = None) -> Recipe:
    """Videos of 2 to 4 frames and now and then none; everything is trained."""
    made = spec(out)
    made.stages = made.stages[:1]
    stage = made.stages[0]
    stage.trainable, stage.steps, stage.grad_accum = {"*": 1e-3}, 5, 2
    stage.packed, stage.parallel = packed, parallel or Parallel()
    made.workers, made.timeout = 0, 60
    return made


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    out = tmp_path_factory.mktemp("padded")
    assert run(shared(out)) == 0
    return list(history(out).values())


def test_packed_samples_give_the_losses_of_padded_ones(tmp_path: Path, padded: list[float]) -> None:
    assert run(shared(tmp_path, packed=True)) == 0
    assert list(history(tmp_path).values()) == pytest.approx(padded, abs=1e-5)


@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (2, Parallel(sp_size=2)),
        (2, Parallel(sp_size=2, ulysses=2)),
        (4, Parallel(sp_size=2, ulysses=1, inner="ring")),
    ],
)
def test_shared_samples_give_the_losses_of_one_process(
    world: int, parallel: Parallel, tmp_path: Path, padded: list[float]
) -> None:
    assert run_world(shared(tmp_path, parallel=parallel), world) == [0] * world
    assert list(history(tmp_path).values()) == pytest.approx(padded, abs=2e-5)


def test_sizes_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"parallel.sp_size=3 does not divide 1 processes"):
        run_here(shared(tmp_path / "a", parallel=Parallel(sp_size=3)))
    made = shared(tmp_path / "b").as_dict()
    made["stages"][0]["parallel"] = {"sp_size": 0}
    with pytest.raises(ConfigError, match=r"parallel.sp_size=0 must be at least 1"):
        parse_recipe(made)
    text_only = shared(tmp_path / "c", packed=True)
    text_only.model.call, text_only.model.args = "train.tiny:model", {"width": 32, "layers": 1}
    with pytest.raises(ConfigError, match="cannot share or pack"):
        run_here(text_only)
