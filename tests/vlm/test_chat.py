"""Conversations: reuse of what was read, streaming, stopping, equality with a single pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny import random_frames, tiny_assistant
from vlm.chat import Assistant
from vlm.errors import ConfigError
from vlm.generate import repeated_tail


@pytest.fixture(scope="module")
def tiny() -> Assistant:
    return tiny_assistant()


def ask(assistant: Assistant, *questions: str, **options: Any) -> list[str]:
    chat = assistant.conversation()
    media: dict[str, Any] = {"video": random_frames(4), "num_frames": 4}
    answers = []
    for text in questions:
        answers.append(chat.ask(text, max_new_tokens=8, **media, **options).raw)
        media = {}
    return answers


def test_a_follow_up_equals_reading_everything_again(tiny: Assistant) -> None:
    chat = tiny.conversation()
    chat.ask("what?", video=random_frames(4), num_frames=4, max_new_tokens=8)
    before = list(chat.state.ids)
    second = chat.ask("and then?", max_new_tokens=8)
    prompt = chat.state.ids[: len(before) + second.usage.prompt_tokens]
    assert prompt[: len(before)] == before
    part = {"type": "video", "video": random_frames(4), "num_frames": 4}
    media = tiny.processor([{"role": "user", "content": [part]}])
    media.pop("attention_mask")
    ids = torch.tensor([prompt])
    out = tiny.model.generate(**{**media, "input_ids": ids}, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert tiny.processor.decode_reply(out[0, len(prompt) :]) == second.raw


def test_a_follow_up_runs_no_vision_and_reads_only_what_is_new(tiny: Assistant) -> None:
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    handle = tiny.model.vision_tower.register_forward_hook(count)
    chat = tiny.conversation()
    one = chat.ask("what?", video=random_frames(4), num_frames=4, max_new_tokens=4)
    two = chat.ask("and?", max_new_tokens=4)
    handle.remove()
    assert calls == 1
    assert (one.usage.frames, two.usage.frames) == (4, 0)
    assert two.usage.reused_tokens >= one.usage.prompt_tokens
    assert two.usage.prompt_tokens < one.usage.prompt_tokens
    assert two.usage.media_tokens == 0


def test_streaming_grows_and_ends_with_the_reply(tiny: Assistant) -> None:
    chat = tiny.conversation()
    texts = list(chat.stream("what?", video=random_frames(4), num_frames=4, max_new_tokens=6))
    assert chat.reply is not None and texts[-1] == chat.reply.text
    assert chat.reply.usage.completion_tokens == len(texts)
    assert set(chat.reply.usage.seconds) >= {"decode", "encode", "prefill", "generate", "first_token"}


def test_stop_ends_at_the_next_token_and_the_conversation_goes_on(tiny: Assistant) -> None:
    chat = tiny.conversation()
    for count, _ in enumerate(chat.stream("what?", video=random_frames(4), num_frames=4, max_new_tokens=50)):
        if count == 2:
            chat.stop()
    assert chat.reply is not None and chat.reply.usage.completion_tokens <= 4
    assert isinstance(chat.ask("more?", max_new_tokens=3).text, str)


def test_stop_strings_cut_the_answer(tiny: Assistant) -> None:
    whole = tiny.chat("what?", max_new_tokens=12).raw
    if len(whole) > 4:
        cut = whole[2:4]
        assert cut not in tiny.chat("what?", max_new_tokens=12, stop=[cut]).raw


def test_same_seed_same_answer(tiny: Assistant) -> None:
    options = {"temperature": 1.0, "top_p": 0.9}
    assert ask(tiny, "a?", seed=1, **options) == ask(tiny, "a?", seed=1, **options)
    assert len({ask(tiny, "a?", seed=s, **options)[0] for s in range(6)}) > 1


def test_wrong_options_are_named(tiny: Assistant) -> None:
    with pytest.raises(ConfigError, match="empty"):
        tiny.chat("  ")
    with pytest.raises(ConfigError, match="temperature=-1"):
        tiny.chat("a", temperature=-1.0)
    with pytest.raises(ConfigError, match="no ears"):
        tiny.chat("a", audio="x.wav")


def test_streamed_tokens_equal_generate(tiny: Assistant) -> None:
    messages = [{"role": "user", "content": "hello"}]
    batch = tiny.processor(messages)
    expected = tiny.model.generate(**batch, max_new_tokens=10, do_sample=False, pad_token_id=0)[
        0, batch["input_ids"].shape[1] :
    ]
    assert tiny.chat("hello", max_new_tokens=10).raw == tiny.processor.decode_reply(expected)
    assert torch.isfinite(tiny.model(**batch).logits).all()


def test_an_answer_that_goes_round_in_circles_is_ended() -> None:
    assert repeated_tail([9, 1, 2, 1, 2, 1, 2, 1, 2]) == 2
    assert repeated_tail([1, 2, 3] * 4) == 3
    assert repeated_tail([1, 2, 1, 2, 1, 2, 1, 3]) == 0
    assert repeated_tail([5, 5, 5]) == 0
