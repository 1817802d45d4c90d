"""Features that are kept are what the eyes see, and the eyes look once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train.looked
from data_recipes.sample import Sample, assistant, user
from tests.tiny import tiny_assistant
from train.looked import LookedAt, looked_at
from vlm.errors import ConfigError
from vlm.media import Audio
from vlm.model import MEDIA_KEYS

CLIPS: dict[str, Any] = {
    "call": "train.mixture:mix",
    "args": {
        "parts": {
            "clips": {
                "call": "data_recipes.synth.shapes:conversations",
                "args": {"split": "train", "level": "brief", "num_frames": 6, "size": 50, "turns": 2},
            },
            "stills": {
                "call": "data_recipes.synth.shapes:conversations",
                "args": {"split": "train", "level": "stills", "size": 50, "turns": 2},
            },
        },
        "seed": 3,
    },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    tiny, folder = tiny_assistant(), tmp_path_factory.mktemp("tiny")
    tiny.model.save_pretrained(folder)
    tiny.processor.save_pretrained(folder)
    return str(folder)


def dataset(model: str, folder: Path, **changes: Any) -> LookedAt:
    return looked_at(**{"data": CLIPS, "model": model, "folder": str(folder), "size": 12, **changes})


def test_kept_features_are_what_the_eyes_see(model: str, tmp_path: Path) -> None:
    data = dataset(model, tmp_path)
    seer = data._assistant
    kinds = set()
    for i in range(6):
        raw, kept = data.data[i], data[i]
        assert kept.id == raw.id
        tensors = [
            seer.processor.tensors(seer.processor.prompt(s.messages, add_generation_prompt=False)) for s in (raw, kept)
        ]
        assert torch.equal(tensors[0]["input_ids"], tensors[1]["input_ids"])
        with torch.inference_mode():
            embeds = [seer.model.fuse(t["input_ids"][None], **{k: t[k] for k in MEDIA_KEYS if k in t}) for t in tensors]
        torch.testing.assert_close(embeds[0], embeds[1], rtol=0, atol=5e-3)
        assert "pixel_values" not in tensors[1]
        kinds.add(kept.messages[0]["content"][0]["type"])
    assert kinds == {"image", "video"}


def test_eyes_look_once(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = [dataset(model, tmp_path)[i] for i in (0, 5)]
    monkeypatch.setattr(LookedAt, "_look", lambda *_: pytest.fail("looked again"))
    again = dataset(model, tmp_path)
    for old, i in zip(first, (0, 5), strict=True):
        new = again[i].messages[0]["content"][0]
        np.testing.assert_array_equal(new["features"], old.messages[0]["content"][0]["features"])
    with pytest.raises(IndexError):
        again[12]


def test_other_eyes_or_data_are_kept_elsewhere(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = dataset(model, tmp_path).folder
    assert dataset(model, tmp_path, seed=9).folder == usual  # the mixture says its own
    other = {**CLIPS, "args": {**CLIPS["args"], "seed": 4}}
    assert dataset(model, tmp_path, data=other).folder != usual
    monkeypatch.setattr(train.looked, "_files", lambda _: [("model.safetensors", 1, 2)])
    assert dataset(model, tmp_path).folder != usual


def test_sound_cannot_be_looked_at(tmp_path: Path) -> None:
    class Heard:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Sample:
            sound = {"type": "audio", "audio": Audio(np.zeros((1, 1600), np.float32), 16_000)}
            return Sample("heard", [user(sound, "what is it?"), assistant("a beep")], {})

    data = LookedAt(Heard(), 1, tmp_path, "nano", "{}")
    with pytest.raises(ConfigError, match="heard"):
        data[0]


def test_misuse_is_explained(model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="size=0"):
        dataset(model, tmp_path, size=0)
    with pytest.raises(ConfigError, match="there is no such key"):
        dataset(model, tmp_path, data={"cal": "x"})
