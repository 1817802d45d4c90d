"""The launchers: one per training stage, each a line."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

STAGES = ("align", "pretrain", "sft", "extend", "long")


def start(script: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a launcher with a Python that only says what it was asked to do."""
    env = {**os.environ, "PYTHON": "echo", **environment}
    return subprocess.run([str(script), *arguments], env=env, capture_output=True, text=True, timeout=20)


@pytest.mark.parametrize("stage", STAGES)
def test_a_launcher_trains_up_to_its_stage(root: Path, stage: str) -> None:
    done = start(root / f"scripts/{stage}.sh", "tiny", "out=a b")
    assert done.stdout == f"-m train tiny out=a b until={stage}\n"
    done = start(root / f"scripts/{stage}.sh", "tiny", "seed=1", PROCESSES="4")
    assert "torch.distributed.run" in done.stdout and "--nproc-per-node 4" in done.stdout
    assert done.stdout.endswith(f"-m train tiny seed=1 until={stage}\n")


def test_a_launcher_without_a_recipe_says_how_it_is_used(root: Path) -> None:
    done = start(root / "scripts/sft.sh")
    assert done.returncode == 2 and "RECIPE" in done.stderr and done.stdout == ""
