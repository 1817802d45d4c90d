"""Runs that are killed, pre-empted or stuck go on as if nothing had happened: same losses, same weights, to the bit."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.train.harness import Child, final_digest, history, recipe, run
from train.checkpoint import CheckpointStore
from train.signals import EXIT_PREEMPTED
from train.stages import Recipe
from train.tiny import model
from vlm.errors import TrainingError

KILLS = 30
STEPS = (40, 60)


def spec(out: Path) -> Recipe:
    """Two stages with dropout, micro-batches and a checkpoint at every step, so that many kills fall into a save."""
    return recipe(out, steps=STEPS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    assert run(spec(out)) == 0
    return out


def assert_same(out: Path, undisturbed: Path) -> None:
    assert history(out) == history(undisturbed)
    assert final_digest(out) == final_digest(undisturbed)


def kill_and_resume(folder: Path, undisturbed: Path, kills: int, seed: int) -> None:
    """Kill -9 at random moments, over as many runs as that takes; each must end like the undisturbed one."""
    rng = random.Random(seed)
    killed = inside_a_save = runs = 0
    while killed < kills:
        out, runs = folder / str(runs), runs + 1
        while True:
            child = Child(spec(out))
            child.wait_for("step")
            time.sleep(rng.uniform(0.0, 0.2))
            child.kill()
            if child.join() == 0:  # it had been faster
                break
            killed += 1
            inside_a_save += any((out / "checkpoints").glob(".tmp-*"))
            if killed >= kills:
                assert run(spec(out)) == 0
                break
        assert_same(out, undisturbed)
    assert inside_a_save >= kills // 10, f"{inside_a_save} of {killed} kills were inside a save"


def test_thirty_kills_change_nothing(tmp_path: Path, undisturbed: Path) -> None:
    kill_and_resume(tmp_path, undisturbed, KILLS, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_three_hundred_kills_change_nothing(tmp_path: Path, undisturbed: Path) -> None:
    kill_and_resume(tmp_path, undisturbed, 300, seed=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_with_a_code_of_its_own(
    tmp_path: Path, undisturbed: Path, number: signal.Signals
) -> None:
    unsaved = spec(tmp_path)
    unsaved.save_every = 1000
    for delay in (0.0, 0.13, 0.31):
        child = Child(unsaved)
        child.wait_for("step")
        time.sleep(delay)
        began = time.monotonic()
        child.kill(number)
        assert child.join() == EXIT_PREEMPTED
        assert time.monotonic() - began < 10
        found = CheckpointStore(tmp_path / "checkpoints").load()
        assert found is not None
        assert found.state["progress"]["global_step"] == max(history(tmp_path)) > 0
    assert run(unsaved) == 0
    assert_same(tmp_path, undisturbed)


class Stuck(nn.Module):
    """The second step takes half a minute."""

    def __init__(self) -> None:
        super().__init__()
        self.model = model(width=32, layers=1)
        self.calls = 0

    def forward(self, **inputs: Any) -> Any:
        self.calls += 1
        if self.calls > 1:
            time.sleep(30)
        return self.model(**inputs)


def test_a_step_that_takes_long_does_not_delay_the_save(tmp_path: Path) -> None:
    slow = recipe(tmp_path, steps=(5,), stage={"grad_accum": 1}, save_every=100)
    slow.model.call, slow.model.args = "tests.train.test_kill:Stuck", {}
    slow.stages[0].trainable = {"*": 1e-3}
    child = Child(slow, patience=0.5)
    child.wait_for("step")
    began = time.monotonic()
    child.kill(signal.SIGTERM)
    assert child.join() == EXIT_PREEMPTED
    assert time.monotonic() - began < 8
    found = CheckpointStore(tmp_path / "checkpoints").load()
    assert found is not None and found.step == 1
    assert "model.lm_head.weight" in found.tensors["weights"]
    assert all(bool(torch.isfinite(t).all()) for t in found.tensors["optimizer"].values())


def test_workers_do_not_outlive_a_signal_or_a_kill(tmp_path: Path) -> None:
    for number, code in ((signal.SIGTERM, EXIT_PREEMPTED), (signal.SIGKILL, -signal.SIGKILL)):
        busy = spec(tmp_path)
        busy.workers = 2
        child = Child(busy)
        child.wait_for("step")
        workers = _children_of(child.process.pid)
        assert len(workers) == 2
        child.kill(number)
        assert child.join() == code
        deadline = time.monotonic() + 15  # a worker whose parent was killed notices within some seconds
        while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def _children_of(pid: int | None) -> list[int]:
    """Process ids whose parent is ``pid``."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            after_name = (folder / "stat").read_text().rpartition(")")[2].split()
            found += [int(folder.name)] if after_name[1] == str(pid) else []
    return found


def test_a_second_trainer_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    from train.run import run as run_here

    first = Child(spec(tmp_path))
    first.wait_for("step")
    with pytest.raises(TrainingError, match=f"process {first.process.pid}"):
        run_here(spec(tmp_path))
    first.kill()
    first.join()


def test_a_disk_that_fills_up_ends_the_run_with_the_last_checkpoint_intact(tmp_path: Path, undisturbed: Path) -> None:
    """The file size limit stands for the disk; it is met in the second stage, whose optimizer state is larger."""
    limited = Child(spec(tmp_path), file_limit=20_000, log=str(tmp_path / "said"))
    assert limited.join() == 3
    assert "disk full" in (tmp_path / "said").read_text() and "-align-40" in (tmp_path / "said").read_text()
    found = CheckpointStore(tmp_path / "checkpoints").load()
    assert found is not None and (found.stage, found.step) == (0, 40)
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))
    assert run(spec(tmp_path)) == 0
    assert_same(tmp_path, undisturbed)
