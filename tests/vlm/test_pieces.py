"""A prompt embedded piece by piece is the prompt embedded at once, and no step sees all frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import random_frames, tiny_assistant
from vlm.chat import Assistant
from vlm.errors import AlignmentError
from vlm.media import Audio, Video, load_video
from vlm.model import MEDIA_KEYS
from vlm.pieces import FRAMES, embed_pieces, runs
from vlm.prepare import Pixels, normalise
from vlm.time.slowfast import make_pooler

EARS = {
    "mode": "features",
    "stride": 5,
    "window": 2.0,
    "tower": {
        "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 8,
        "max_source_positions": 100,
    },
    "connector": {"type": "mlp2x_gelu"},
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "frame": {},
    "changes, tagged": {
        "pooling": {"mode": "changes", "out_grid": [2, 2]},
        "connector": {"type": "mlp2x_gelu"},
        "time": {"codec": "relative", "num_tokens": 20, "interleave": True, "tag": 1.0},
    },
    "slowfast": {"pooling": {"mode": "slowfast", "pool_size": 2}},
    "slow": {"pooling": {"mode": "slowfast", "pool_size": 3, "fast": False}},
    "several sizes": {"pooling": {"mode": "tsp", "pool_sizes": [[4, 1, 1], [2, 2, 2]]}},
    "tsp": {"pooling": {"mode": "tsp", "pool_sizes": [[2, 2, 2]]}},
    "segments": {"pooling": {"mode": "segments", "before_connector": True}, "connector": {"type": "mlp2x_gelu"}},
    "ears": {"audio_config": EARS, "time": {"codec": "relative", "num_tokens": 20, "interleave": True, "tag": 1.0}},
}


def video(frames: int, seed: int = 0) -> Video:
    return load_video(random_frames(frames, seed=seed), frame_fps=4.0, num_frames=frames)


def tensors(assistant: Assistant, *, lazy: bool = False) -> dict[str, Any]:
    """A picture, two videos (one longer than what goes through the eyes at a time) and, for those with ears, two windows of sound."""
    parts: list[dict[str, Any]] = [
        {"type": "image", "image": random_frames(1, seed=3)[0]},
        {"type": "text", "text": "and"},
        {"type": "video", "video": video(2 * FRAMES + 7)},
        {"type": "video", "video": video(5, seed=1)},
        {"type": "text", "text": "what is it?"},
    ]
    if assistant.processor.ears:
        wave = np.random.default_rng(0).normal(size=(1, 60_000)).astype(np.float32)
        parts.insert(2, {"type": "audio", "audio": Audio(wave, 16_000)})
    prompt = assistant.processor.prompt([{"role": "user", "content": parts}], add_generation_prompt=True)
    return assistant.processor.tensors(prompt, lazy=lazy)


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_pieces_laid_end_to_end_are_what_fuse_gives(case: str) -> None:
    assistant = tiny_assistant(**CASES[case])
    model, whole, lazy = assistant.model, tensors(assistant), tensors(assistant, lazy=True)
    ids = whole["input_ids"][None]
    expected = model.fuse(ids, **{k: whole[k] for k in MEDIA_KEYS if k in whole})
    looked: list[int] = []
    handle = model.vision_tower.register_forward_pre_hook(lambda _, inputs: looked.append(len(inputs[0])))
    for size in (7, 50, 100_000):
        pieces = list(embed_pieces(model, ids, size=size, **{k: lazy[k] for k in MEDIA_KEYS if k in lazy}))
        assert [p.shape[1] for p in pieces] == [len(x) for x in whole["input_ids"].split(size)]
        torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=1e-5, atol=1e-5)
    handle.remove()
    assert max(looked) <= FRAMES + 2 if case != "segments" else max(looked) <= 2 * FRAMES + 7  # a shot may be long
    features = model.encode_frames(whole["pixel_values"])
    media = {k: whole[k] for k in MEDIA_KEYS if k in whole and k != "pixel_values"}
    again = torch.cat(list(embed_pieces(model, ids, vision_features=features, **media)), 1)
    torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-5)


def test_frames_are_looked_at_only_when_their_tokens_are_due() -> None:
    assistant = tiny_assistant()
    lazy, looked = tensors(assistant, lazy=True), 0

    def count(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal looked
        looked += len(inputs[0])

    assistant.model.vision_tower.register_forward_pre_hook(count)
    seen = []
    with torch.inference_mode():
        for _ in embed_pieces(
            assistant.model, lazy["input_ids"][None], size=16, **{k: lazy[k] for k in MEDIA_KEYS if k in lazy}
        ):
            seen.append(looked)
    total = 1 + 2 * FRAMES + 7 + 5
    assert seen[-1] == total and seen == sorted(seen)
    assert seen[0] <= 1 + FRAMES < total
    assert len(set(seen)) >= 4


@pytest.mark.parametrize("wrong", [-3, 2])
def test_placeholders_and_features_must_agree(wrong: int) -> None:
    assistant = tiny_assistant()
    model, whole = assistant.model, tensors(assistant)
    ids = whole["input_ids"]
    video_id = int(model.config.video_token_id)
    places = (ids == video_id).nonzero().flatten()
    keep = torch.ones_like(ids, dtype=torch.bool)
    if wrong < 0:
        keep[places[wrong:]] = False
        ids = ids[keep]
    else:
        ids = torch.cat([ids, torch.full((wrong,), video_id)])
    media = {k: whole[k] for k in MEDIA_KEYS if k in whole}
    with torch.inference_mode(), pytest.raises(AlignmentError, match="placeholder tokens"):
        list(embed_pieces(model, ids[None], **media))
    fewer = {**media, "pixel_values": whole["pixel_values"][:-1]}
    with torch.inference_mode(), pytest.raises(AlignmentError, match="frames were given"):
        list(embed_pieces(model, whole["input_ids"][None], **fewer))


def test_runs_cover_all_frames_in_order() -> None:
    def bounds(mode: str, segments: list[int] | None = None, **options: Any) -> list[tuple[int, int]]:
        return [(r.start, r.stop) for r in runs(make_pooler(mode, **options), 70, (4, 4), segments)]

    assert bounds("frame") == [(0, 32), (32, 64), (64, 70)]
    assert bounds("tsp", pool_sizes=[[5, 1, 1]]) == [(0, 35), (35, 70)]
    assert bounds("tsp", pool_sizes=[[5, 1, 1], [1, 4, 4]]) == [(0, 35), (35, 70)]
    assert bounds("segments", [40, 3, 27]) == [(0, 40), (40, 70)]
    assert bounds("slowfast", pool_size=2) == [(0, 32), (32, 64), (64, 70)]
    assert bounds("mean", over="time") == [(0, 70)]
    first, *_, last = runs(make_pooler("slowfast", pool_size=2), 70, (4, 4), None)
    assert first.tokens == [*range(32), *range(70, 78)] and last.tokens == [*range(64, 70), *range(82, 86)]


def test_pixels_are_those_of_normalise() -> None:
    config = {"image_size": 32, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    first, second = random_frames(3, size=32), random_frames(4, size=48, seed=1)
    pixels = Pixels.joined([Pixels([first], config), Pixels([second], config)])
    expected = torch.cat([normalise(first, config), normalise(second, config)])
    assert len(pixels) == 7
    for rows in (slice(None), slice(0, 3), slice(1, 5), slice(3, 7), slice(6, 7), slice(2, 2)):
        assert torch.equal(pixels[rows], expected[rows])
