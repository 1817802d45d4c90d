"""A complete, very small, random video-language model goes through the loop: videos, adapters, frozen eyes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from data_recipes.sample import Sample, assistant, rng_for, user
from tests.tiny import random_frames, tiny_assistant
from tests.train.harness import history, recipe, run_world
from train.dryrun import describe
from train.run import run
from train.stages import Recipe
from vlm.media import load_video
from vlm.plugins.parts import load_parts, tensors_by_name


class Conversations:
    """Noise videos of 2 to 4 frames with one question each; every fifth sample has no medium at all."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Sample:
        frames = 2 + int(rng_for(0, index).integers(3))
        video = load_video(random_frames(frames, size=32, seed=index), num_frames=frames, frame_fps=1.0)
        question = ["when?"] if index % 5 == 0 else [{"type": "video", "video": video}, "when?"]
        return Sample(f"noise-{index}", [user(*question), assistant("from {t:0.5} to {t:1.5}")])


def spec(out: Path) -> Recipe:
    stage = {"data": "tests.train.test_vlm:Conversations", "batch_size": 4, "seq_len": 256}
    made = recipe(out, steps=(6, 6), stage=stage, workers=1)
    made.model.call, made.model.args = "tests.tiny:tiny_assistant", {}
    align, sft = made.stages
    align.trainable = {"mm_projector": 1e-2}
    sft.trainable = {"mm_projector": 1e-3, "*.lora_*": 1e-2}
    sft.plugins = (
        recipe(out, stage={"plugins": [{"call": "lora", "args": {"within": "language_model", "r": 2}}]})
        .stages[0]
        .plugins
    )
    return made


def test_alignment_then_adapters(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    torch.set_num_threads(1)
    assert run(spec(tmp_path)) == 0
    losses = list(history(tmp_path).values())
    assert len(losses) == 12 and sum(losses[-3:]) < sum(losses[:3])
    fresh = tiny_assistant()
    before = {k: v.clone() for k, v in tensors_by_name(fresh.model).items()}
    model: Any = fresh.model
    loaded, names = load_parts(model, tmp_path / "final")
    after = tensors_by_name(loaded)
    assert {n.split(".")[0] for n in names} == {"mm_projector", "language_model"}
    assert all("lora_" in n for n in names if n.startswith("language_model"))
    assert all(torch.equal(after[n], t) for n, t in before.items() if n.startswith("vision_tower"))
    assert any(not torch.equal(after[n], t) for n, t in before.items() if n.startswith("mm_projector"))
    assert loaded is fresh.model
    assert isinstance(fresh.chat("when?", image=random_frames(1)[0], max_new_tokens=3).text, str)


def test_a_process_without_media_does_not_hold_up_the_other(tmp_path: Path) -> None:
    """With two samples per step, one process often has a conversation without a video."""
    pytest.importorskip("peft")
    for size in (1, 2):
        pair = spec(tmp_path / str(size))
        pair.stages = pair.stages[:1]
        pair.stages[0].steps, pair.stages[0].batch_size, pair.stages[0].grad_accum = 8, 2, 1
        pair.workers, pair.timeout = 0, 60
        assert run_world(pair, size) == [0] * size
    one, two = (list(history(tmp_path / str(size)).values()) for size in (1, 2))
    assert one == pytest.approx(two, abs=1e-4)


def test_a_dry_run_reads_a_few_conversations(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    text = describe(spec(tmp_path))
    assert "vision_tower         frozen" in text and "mm_projector         trainable" in text
    assert "40 samples" in text
