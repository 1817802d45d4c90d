"""Damaged files: never a crash, a hang or a foreign exception. scripts/soak_media.py decodes in child processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def soak(root: Path, keep: Path, count: int, seed: int) -> dict[str, Any]:
    """Run the script as a user would; it forks, which this process, full of threads, should not."""
    command = [sys.executable, str(root / "scripts/soak_media.py"), f"--count={count}", f"--seed={seed}"]
    done = subprocess.run([*command, f"--keep={keep}"], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    return json.loads(done.stdout[: done.stdout.rindex("}") + 1])


def test_300_damaged_files(root: Path, tmp_path: Path) -> None:
    result = soak(root, tmp_path, 300, seed=5)  # its file 5 once ended in an IndexError of PyAV
    assert not result["failures"], result["failures"][:5]
    assert sum(result["outcomes"].values()) == 300
    assert min(result["outcomes"].get(kind, 0) for kind in ("frames", "partial", "MediaError")) > 10
    assert result["peak_mb"] < 1024


@pytest.mark.slow
def test_5000_damaged_files(root: Path, tmp_path: Path) -> None:
    result = soak(root, tmp_path, 5000, seed=2)
    assert not result["failures"], result["failures"][:20]
    assert sum(result["outcomes"].values()) == 5000
