"""Two processes over gloo: same samples, same losses, same decisions as one."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch

from tests.train.harness import history, recipe, run, run_world, start_world
from train.checkpoint import CheckpointStore
from train.stages import Recipe


def spec(out: Path, **changes: object) -> Recipe:
    made = recipe(out, steps=(4, 6), **changes)
    made.model.args["dropout"] = 0.0  # noise differs between processes by design
    return made


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    assert run(spec(out)) == 0
    return out


def weights(out: Path) -> dict[str, torch.Tensor]:
    found = CheckpointStore(out / "checkpoints").load()
    assert found is not None
    return found.tensors["weights"]


def test_two_processes_give_the_losses_and_weights_of_one(tmp_path: Path, alone: Path) -> None:
    assert run_world(spec(tmp_path), 2) == [0, 0]
    ours, theirs = history(tmp_path), history(alone)
    assert ours.keys() == theirs.keys()
    for step in theirs:
        assert ours[step] == pytest.approx(theirs[step], abs=2e-5), step
    for name, tensor in weights(alone).items():
        assert float((weights(tmp_path)[name] - tensor).abs().mean()) < 1e-4, name


def test_a_run_can_go_on_with_another_number_of_processes(tmp_path: Path, alone: Path) -> None:
    first = spec(tmp_path, until="align")
    assert run_world(first, 2) == [0, 0]
    first.until = None
    assert run(first) == 0
    assert list(history(tmp_path).values()) == pytest.approx(list(history(alone).values()), abs=2e-5)


def test_a_loss_that_is_not_finite_in_one_process_stops_both_and_names_the_sample(tmp_path: Path) -> None:
    poisoned = recipe(tmp_path, steps=(8,), stage={"grad_accum": 2})
    poisoned.model.call, poisoned.model.args = "tests.train.test_loop:Poisonable", {}
    poisoned.stages[0].data.call, poisoned.stages[0].data.args = "tests.train.test_loop:Poisoned", {"size": 32}
    poisoned.stages[0].trainable = {"*": 1e-2}
    log = tmp_path / "said"
    assert run_world(poisoned, 2, log=str(log)) == [3, 3]
    for rank in (0, 1):
        said = Path(f"{log}{rank}").read_text()
        assert re.search(r"step \d: loss nan.*backwards-5\b", said)
        assert len(set(re.findall(r"backwards-\d+", said))) == 8  # the samples of both


def test_when_one_process_is_killed_the_other_ends_soon_and_the_run_can_go_on(tmp_path: Path, alone: Path) -> None:
    log = tmp_path / "said"
    first, second = start_world(spec(tmp_path), 2, log=str(log))
    first.wait_for("step")
    began = time.monotonic()
    second.kill()
    assert first.join() == 3
    assert time.monotonic() - began < 5
    assert re.search(r"process 0, stage \d, step \d+: another process has ended", Path(f"{log}0").read_text())
    assert run(spec(tmp_path)) == 0
    assert list(history(tmp_path).values()) == pytest.approx(list(history(alone).values()), abs=2e-5)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    odd = spec(tmp_path)
    for stage in odd.stages:
        stage.batch_size, stage.grad_accum = 3, 1
    log = tmp_path / "said"
    assert run_world(odd, 2, log=str(log)) == [3, 3]
    assert "batch_size=3 must be a multiple" in Path(f"{log}0").read_text()
