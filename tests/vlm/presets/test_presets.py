"""Presets: what ships loads, answers, and says plainly when something is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.tiny import random_frames, tiny_assistant
from vlm.errors import CheckpointError, ConfigError
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


@pytest.mark.parametrize("damage", ["weights", "config", "tokenizer", "pooling", "time", "audio"])
def test_damaged_folders_end_in_an_error_of_ours(tmp_path: Path, damage: str) -> None:
    tiny = tiny_assistant()
    tiny.model.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if damage == "weights":
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    if damage == "tokenizer":
        (tmp_path / "tokenizer.json").write_text('{"version": ')
    config["vision_config"] |= {"image_size": "big"} if damage == "config" else {}
    config |= {
        "pooling": {"pooling": {"pool_size": 2}},
        "time": {"time": {"interleave": True}},
        "audio": {"audio_config": {"connector": {"token_order": "row"}}},
    }.get(damage, {})
    (tmp_path / "config.json").write_text(json.dumps(config))
    lacks = {"pooling": "lacks 'mode'", "time": "lacks 'codec'", "audio": "lacks 'type'"}.get(damage, "cannot load")
    with pytest.raises((CheckpointError, ConfigError), match=lacks):
        load(tmp_path)


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device='cuda:99'"):
        load(tmp_path, device="cuda:99")


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
    model = tiny_assistant(connector={"type": "linear"}).model
    with pytest.raises(CheckpointError, match="mm_projector"):
        apply_trained(model, {"mm_projector.layers.weight": torch.zeros(2, 2)}, {})
