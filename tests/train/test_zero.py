"""DeepSpeed's ZeRO learns what one process learns, and its checkpoints are ours. `make test-zero` runs this where DeepSpeed is."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from tests.train.harness import history, recipe, run, run_world
from tests.train.test_shared import shared
from train.checkpoint import CheckpointStore
from train.run import run as run_here
from train.stages import Parallel, Recipe
from train.zero import read_config
from vlm.errors import ConfigError, MissingDependencyError

HERE = importlib.util.find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(not HERE, reason="DeepSpeed is not installed; make test-zero has it")
CONFIGS = Path(__file__).resolve().parents[2] / "scripts" / "cluster"


def spread(out: Path, folder: Path, stage: int = 1, *, sp_size: int = 1, steps: int = 5) -> Recipe:
    """As `shared`, through DeepSpeed."""
    config = folder / f"zero{stage}.json"
    config.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    made = shared(out, parallel=Parallel(sp_size=sp_size, zero=str(config)))
    made.stages[0].steps, made.stages[0].grad_accum, made.timeout = steps, 1, 200
    return made


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    assert run(shared(out)) == 0
    return out


@needs_deepspeed
@pytest.mark.parametrize(("stage", "sp_size"), [(1, 1), (1, 2)])
def test_the_losses_and_weights_of_one_process(stage: int, sp_size: int, tmp_path: Path, alone: Path) -> None:
    out = tmp_path / "out"
    done = run_world(spread(out, tmp_path, stage, sp_size=sp_size), 2, log=str(tmp_path / "log"))
    assert done == [0, 0]
    assert list(history(out).values()) == pytest.approx(list(history(alone).values()), abs=2e-5)
    ours, theirs = (CheckpointStore(folder / "checkpoints").load() for folder in (out, alone))
    assert ours is not None and theirs is not None
    for kind in ("weights", "optimizer"):
        assert ours.tensors[kind].keys() >= theirs.tensors[kind].keys()  # zeros for what has no gradient, too
        for name, tensor in theirs.tensors[kind].items():
            torch.testing.assert_close(ours.tensors[kind][name], tensor, rtol=1e-3, atol=2e-5, msg=name)


@needs_deepspeed
def test_a_run_goes_on_with_deepspeed_and_without(tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = shared(tmp_path / "whole")
    whole.stages[0].schedule = "constant"
    assert run(whole) == 0
    wanted = list(history(tmp_path / "whole").values())
    for steps, zero in ((2, True), (4, True), (5, False)):
        part = spread(out, tmp_path) if zero else shared(out)
        part.stages[0].schedule, part.stages[0].steps = "constant", steps
        log = tmp_path / f"log-{steps}-"
        assert run_world(part, 2, log=str(log)) == [0, 0]
    assert list(history(out).values()) == pytest.approx(wanted, abs=2e-5)


@needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_stages_that_would_add_up_wrongly_say_so(stage: int, tmp_path: Path) -> None:
    """With stage 2, a step in which one process had no picture changed the weights by the wrong amount."""
    assert run_world(spread(tmp_path / "out", tmp_path, stage), 2, log=str(tmp_path / "log")) == [3, 3]
    logs = [(tmp_path / f"log{rank}").read_text() for rank in (0, 1)]
    assert any("not every process has pictures" in text for text in logs), logs


@needs_deepspeed
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_text_alone_in_every_stage_and_on_again_without(stage: int, tmp_path: Path) -> None:
    def made(name: str, steps: int, zero: bool) -> Recipe:
        config = tmp_path / "zero.json"
        config.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        parallel = {"zero": str(config)} if zero else {}
        options = {"grad_accum": 1, "schedule": "constant", "trainable": {"*": 1e-3}, "parallel": parallel}
        found = recipe(tmp_path / name, steps=(steps,), stage=options)
        found.model.args["dropout"], found.timeout = 0.0, 200
        return found

    assert run(made("alone", 5, False)) == 0
    for steps, zero in ((2, True), (4, True), (5, False)):
        assert run_world(made("spread", steps, zero), 2, log=str(tmp_path / f"log-{steps}-")) == [0, 0]
    alone, spread_out = (list(history(tmp_path / name).values()) for name in ("alone", "spread"))
    assert spread_out == pytest.approx(alone, abs=2e-5) and len(alone) == 5


def test_shipped_configurations_leave_to_the_recipe_what_it_says() -> None:
    assert [read_config(CONFIGS / f"zero{stage}.json")["zero_optimization"]["stage"] for stage in (1, 2, 3)] == [
        1,
        2,
        3,
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no DeepSpeed configuration"),
        ('{"zero_optimization": {}}', "is no DeepSpeed configuration"),
        ('{"zero_optimization": {"stage": 4}}', "stage=4 must be 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 2}, "optimizer": {}, "bf16": {}}', "optimizer, bf16 are what the recipe"),
    ],
)
def test_configurations_that_do_not_fit_are_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "zero.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "zero.json")


def test_one_process_or_both_ways_are_refused(tmp_path: Path) -> None:
    made = spread(tmp_path / "out", tmp_path)
    with pytest.raises((ConfigError, MissingDependencyError), match="there is one process" if HERE else "deepspeed"):
        run_here(made)
    made.stages[0].grad_accum = 2
    if HERE:
        assert run_world(made, 2, log=str(tmp_path / "log")) == [3, 3]
        assert "cannot be combined with grad_accum=2" in (tmp_path / "log0").read_text()
    made.stages[0].parallel.shard = True
    with pytest.raises(ConfigError, match="do the same; choose one"):
        run_here(made)
