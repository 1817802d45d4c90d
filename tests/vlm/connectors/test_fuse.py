"""The seam between media and text: tags against a plain loop, and through the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tiny import tiny_assistant
from vlm.connectors.fuse import tag
from vlm.errors import ConfigError

TIME = {"codec": "relative", "num_tokens": 100, "interleave": True}


def test_tag_adds_the_last_other_token() -> None:
    generator = torch.Generator().manual_seed(0)
    embeds = torch.randn(3, 40, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    media = torch.rand(3, 40, generator=generator) < 0.6
    media[0, :3] = True  # nothing stands before these
    tagged = tag(embeds, media, 2.5)
    for row in range(3):
        before = None
        for i in range(40):
            if not media[row, i]:
                before = embeds[row, i]
            expected = embeds[row, i]
            if media[row, i] and before is not None:
                expected = expected + 2.5 * before * expected.norm() / before.norm()
            torch.testing.assert_close(tagged[row, i], expected)
    tagged.sum().backward()
    assert embeds.grad is not None and float(embeds.grad.max()) > 1.0


def test_a_tagged_model_tells_frames_apart_that_look_alike() -> None:
    plain, timed = tiny_assistant(time=TIME), tiny_assistant(time={**TIME, "tag": 1.5})
    timed.model.load_state_dict(plain.model.state_dict())
    frames = np.full((4, 32, 32, 3), 90, np.uint8)
    batch = plain.processor([{"role": "user", "content": [{"type": "video", "video": frames}]}])
    media = {k: v for k, v in batch.items() if k not in ("input_ids", "attention_mask")}
    ids = batch["input_ids"]
    video = ids[0] == plain.model.config.video_token_id
    with torch.inference_mode():
        one, two = (a.model.fuse(ids, **media)[0][video].view(4, -1, 48) for a in (plain, timed))
    torch.testing.assert_close(one[0], one[3])
    assert not torch.allclose(two[0], two[3])
    times = plain.model.get_input_embeddings()(ids[0][torch.nonzero(video)[0, 0] - 1])
    longer = one[0].norm(dim=-1, keepdim=True) / times.norm()
    torch.testing.assert_close(two[0], one[0] + 1.5 * times * longer)


def test_reading_on_with_a_tag_equals_a_single_pass() -> None:
    assistant = tiny_assistant(time={**TIME, "tag": 1.5})
    part = {"type": "video", "video": np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3)).astype(np.uint8)}
    chat = assistant.conversation()
    chat.ask("what?", video=part["video"], num_frames=4, max_new_tokens=4)
    read = len(chat.state.ids)
    second = chat.ask("and then?", max_new_tokens=6)
    prompt = chat.state.ids[: read + second.usage.prompt_tokens]
    media = assistant.processor([{"role": "user", "content": [{**part, "num_frames": 4}]}])
    media.pop("attention_mask")
    ids = torch.tensor([prompt])
    out = assistant.model.generate(**{**media, "input_ids": ids}, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert assistant.processor.decode_reply(out[0, len(prompt) :]) == second.raw


def test_a_tag_needs_times_in_the_input() -> None:
    with pytest.raises(ConfigError, match="interleave"):
        tiny_assistant(time={"codec": "relative", "tag": 1.0})
