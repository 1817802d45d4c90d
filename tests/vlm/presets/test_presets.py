"""Presets: what ships loads, answers, and says plainly when something is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import random_frames
from vlm.errors import CheckpointError
from vlm.presets import load, preset_folder
from vlm.presets.smol import TRAINED_FILE, apply_trained

LIMIT = 16 * 2**20


@pytest.mark.parametrize("name", ["smol", "nano"])
def test_shipped_weights_stay_small_and_safe(name: str) -> None:
    files = [p for p in preset_folder(name).rglob("*") if p.is_file()]
    if not files:
        pytest.skip(f"{name} is not trained in this checkout")
    assert sum(p.stat().st_size for p in files) <= LIMIT
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".jinja", ".txt"}


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"without config\.json"):
        load(tmp_path)


def test_smol_answers_about_a_video() -> None:
    if not (preset_folder("smol") / TRAINED_FILE).exists():
        pytest.skip("smol is not trained in this checkout")
    try:
        smol = load("smol")
    except CheckpointError as error:
        pytest.skip(f"the backbones cannot be had here: {error}")
    conversation = smol.conversation()
    reply = conversation.ask("What is in the video?", video=random_frames(8, size=64), num_frames=8, max_new_tokens=12)
    assert reply.text and reply.usage.frames == 8
    again = conversation.ask("When does it appear?", max_new_tokens=12)
    assert again.usage.frames == 0 and again.usage.reused_tokens > 0


def test_trained_parts_that_do_not_fit_are_refused() -> None:
    from tests.tiny import tiny_assistant

    model = tiny_assistant(connector={"type": "linear"}).model
    with pytest.raises(CheckpointError, match="mm_projector"):
        apply_trained(model, {"mm_projector.layers.weight": torch.zeros(2, 2)}, {})
