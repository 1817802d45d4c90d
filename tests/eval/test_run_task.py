"""``vlm eval TASK key=value``: names and options are checked and typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval import _typed_options, run_task
from vlm.errors import ConfigError


def a_task(
    *,
    model: str | None,
    limit: int | None,
    out: Path,
    frames: int = 1,
    share: float = 0.5,
    fast: bool = False,
    clip: str | None = None,
) -> None:
    """Options of every kind."""


def test_options_take_the_types_of_the_task() -> None:
    options = ["frames=8", "share=0.25", "fast=true", "clip=a=b.mp4"]
    assert _typed_options(a_task, "a", options) == {"frames": 8, "share": 0.25, "fast": True, "clip": "a=b.mp4"}
    assert _typed_options(a_task, "a", ["clip=none", "fast=False"]) == {"clip": None, "fast": False}


@pytest.mark.parametrize("option", ["frames", "colour=red", "frames=many", "fast=perhaps", "model=x"])
def test_wrong_options_are_named(option: str) -> None:
    with pytest.raises(ConfigError, match=option.split("=")[0]):
        _typed_options(a_task, "a", [option])


def test_unknown_evaluations_list_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="niah"):
        run_task("tarot", model=None, limit=None, out=tmp_path, options=[])
    with pytest.raises(ConfigError, match="lengths"):
        run_task("niah", model=None, limit=None, out=tmp_path, options=["length=5"])
    with pytest.raises(ConfigError, match="limit=0"):
        run_task("basics", model=None, limit=0, out=tmp_path, options=[])
