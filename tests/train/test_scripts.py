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


def test_slurm_starts_one_torchrun_per_machine(root: Path, tmp_path: Path) -> None:
    for name, body in {"scontrol": 'printf "n7\\nn8\\n"', "srun": 'shift; exec "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_NODELIST": "n[7-8]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_JOB_ID": "42",
    }
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = start(root / "scripts/cluster/slurm.sh", "tiny", "out=a b", PATH=path, **slurm)
    assert done.returncode == 0
    assert done.stdout == (
        "-m torch.distributed.run --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint n7:29500 "
        "--rdzv-id 42 -m train tiny out=a b\n"
    )
    (tmp_path / "srun").write_text("#!/bin/sh\nexit 75\n")
    assert start(root / "scripts/cluster/slurm.sh", "tiny", PATH=path, **slurm).returncode == 75
    assert start(root / "scripts/cluster/slurm.sh").returncode == 2


def test_the_config_for_accelerate_says_fsdp2(root: Path) -> None:
    """accelerate itself reads it, and refuses keys that it does not know."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(root / "scripts/cluster/fsdp2.yaml"))
    assert (config.distributed_type, config.mixed_precision, config.num_processes) == ("FSDP", "bf16", 8)
    assert config.fsdp_config["fsdp_version"] == 2
