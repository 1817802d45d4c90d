"""A stage that packs its samples, or shares them between processes, learns what one process learns from a padded batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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


@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (2, Parallel(shard=True)),
        (2, Parallel(shard=True, sp_size=2)),
        (4, Parallel(shard=True, sp_size=2, ulysses=1, inner="ring")),
    ],
)
def test_weights_spread_over_processes_learn_the_same(
    world: int, parallel: Parallel, tmp_path: Path, padded: list[float]
) -> None:
    """FSDP2, alone and with shared sequences; some processes of some steps see no picture."""
    assert run_world(shared(tmp_path, parallel=parallel), world) == [0] * world
    assert list(history(tmp_path).values()) == pytest.approx(padded, abs=2e-5)


def test_stages_with_spread_weights_are_a_run_like_any_other(tmp_path: Path) -> None:
    """Two stages, adapters in the second, a stop half-way and another number of processes: the same trained parts in the end."""
    made = {}
    for name, world in (("whole", 2), ("spread", 2)):
        both = spec(tmp_path / name)
        for stage in both.stages:
            stage.steps, stage.grad_accum, stage.parallel = 4, 1, Parallel(shard=name == "spread")
        both.workers, both.timeout, both.save = 0, 60, "trainable"
        if name == "spread":
            both.until = both.stages[0].name
            assert run_world(both, 4, log=str(tmp_path / "log")) == [0] * 4, (tmp_path / "log0").read_text()
            both.until = None
        assert run_world(both, world) == [0] * world
        made[name] = load_file(tmp_path / name / "final" / "trainable.safetensors")
        assert json.loads((tmp_path / name / "final" / "recipe.json").read_text())["plugins"]
    assert made["whole"].keys() == made["spread"].keys()
    for key, tensor in made["whole"].items():
        torch.testing.assert_close(made["spread"][key], tensor, rtol=1e-3, atol=2e-5, msg=key)


def test_one_process_has_nothing_to_spread_over(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is one process"):
        run_here(shared(tmp_path, parallel=Parallel(shard=True)))


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
