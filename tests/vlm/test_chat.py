"""Conversations: reuse of what was read, streaming, stopping, equality with a single pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import random_frames, tiny_assistant
from vlm.chat import Assistant, Chat
from vlm.encoders.audio import TranscriptPiece
from vlm.errors import ConfigError
from vlm.generate import DecodeState, repeated_tail, stream_ids
from vlm.media import Audio, load_video, write_video


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
    with pytest.raises(ConfigError, match="no ears"):
        tiny.chat("a", audio="x.wav")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("repetition_penalty", 0.0),
        ("seed", 0.5),
        ("seed", 2**70),
        ("max_new_tokens", 0),
        ("stop", [""]),
        ("stop", [3]),
    ],
)
def test_impossible_options_are_refused_before_anything_is_read(tiny: Assistant, name: str, value: Any) -> None:
    chat = tiny.conversation()
    with pytest.raises(ConfigError, match=name):
        chat.ask("a", **{name: value})
    assert chat.state.ids == chat.messages == []


def test_a_vanishing_temperature_is_greedy(tiny: Assistant) -> None:
    assert tiny.chat("a", max_new_tokens=4, temperature=1e-40).raw == tiny.chat("a", max_new_tokens=4).raw


def test_options_for_files_do_not_go_with_a_loaded_video(tiny: Assistant) -> None:
    video = load_video(random_frames(4), num_frames=4)
    with pytest.raises(ConfigError, match=r"start=1\.0.*loaded already"):
        tiny.chat("a", video=video, start=1.0)


def test_a_video_loaded_before_is_the_same_video(tiny: Assistant, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", random_frames(20, size=64), fps=5)
    loaded = tiny.load(tmp_path / "clip.mp4", num_frames=4, start=1.0)
    assert len(loaded.frames) == 4 and loaded.start == 1.0
    again = tiny.chat("when?", video=loaded, max_new_tokens=8)
    direct = tiny.chat("when?", video=tmp_path / "clip.mp4", num_frames=4, start=1.0, max_new_tokens=8)
    assert again.raw == direct.raw and again.usage.prompt_tokens == direct.usage.prompt_tokens
    assert len(tiny.load(tmp_path / "clip.mp4", fps=2.0).frames) == 8


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


def test_a_circle_is_escaped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that would say 7 8 for ever says the next best token after the third round, and is ended the next time."""
    tiny = tiny_assistant()

    def choose(logits: torch.Tensor, produced: list[int], *_: Any) -> int:
        wanted = 8 if produced and produced[-1] == 7 else 7
        return wanted if logits[wanted] > -torch.inf else 9

    monkeypatch.setattr("vlm.generate._choose", choose)
    for escape, expected in ((True, [7, 8, 7, 8, 7, 8, 9, 7, 8, 7, 8, 7, 8, 7]), (False, [7, 8] * 7)):
        ids = torch.tensor([[3, 4]])
        stream = stream_ids(
            tiny.model,
            DecodeState(),
            tiny.model.get_input_embeddings()(ids),
            [3, 4],
            stop_ids=set(),
            max_new_tokens=14,
            escape=escape,
        )
        assert list(stream) == expected


def says(monkeypatch: pytest.MonkeyPatch, assistant: Assistant, *answers: str) -> None:
    """Let the model write these answers, each with an end of turn."""
    tokenizer = assistant.processor.tokenizer
    ids = iter([i for a in answers for i in tokenizer(a + "<|im_end|>")["input_ids"]])
    monkeypatch.setattr("vlm.generate._choose", lambda *_: next(ids))


def assert_cache_agrees(chat: Chat) -> None:
    """What the model has read is the conversation as it is written down, up to the end of the last answer."""
    processor = chat.assistant.processor
    whole = processor.prompt(chat.messages, add_generation_prompt=False).ids
    held = chat.state.ids + chat.state.pending
    assert whole[: len(held)] == held
    assert processor.tokenizer.decode(whole[len(held) :]) == "<|im_end|>\n"
    assert chat.state.cache.get_seq_length() == len(chat.state.ids)


def left_early(chat: Chat, stream: Iterator[str]) -> None:
    next(stream)
    next(stream)
    stream.close()  # type: ignore[attr-defined]


def left_unread(chat: Chat, stream: Iterator[str]) -> None:
    next(stream)
    chat.kept = stream  # type: ignore[attr-defined]


def stopped(chat: Chat, stream: Iterator[str]) -> None:
    next(stream)
    chat.stop()
    assert list(stream) == []


@pytest.mark.parametrize("llm", ["llama", "gpt_neox"])
@pytest.mark.parametrize(
    ("end", "options", "answer", "kept"),
    [
        (None, {}, "red dog", "red dog"),
        (None, {"max_new_tokens": 5}, "red dog", "red d"),
        (None, {"stop": "og j"}, "red dog jumps", "red d"),
        (None, {}, "ok,ok,ok,ok,ok,", "ok,"),
        (stopped, {}, "red dog", "r"),
        (left_early, {}, "red dog", "re"),
        (left_unread, {}, "red dog", "r"),
    ],
)
def test_however_an_answer_ends_the_cache_holds_what_was_said(
    monkeypatch: pytest.MonkeyPatch, llm: str, end: Any, options: dict[str, Any], answer: str, kept: str
) -> None:
    assistant = tiny_assistant(llm=llm)
    chat = assistant.conversation()
    says(monkeypatch, assistant, answer)
    stream = chat.stream("first?", video=random_frames(2), num_frames=2, **options)
    end(chat, stream) if end else list(stream)
    says(monkeypatch, assistant, "two")
    assert chat.ask("second?").raw == "two"
    assert [m["content"] for m in chat.messages[1::2]] == [kept, "two"]
    assert_cache_agrees(chat)


@pytest.mark.parametrize("llm", ["llama", "gpt_neox"])
def test_a_turn_that_fails_leaves_the_conversation_as_it_was(monkeypatch: pytest.MonkeyPatch, llm: str) -> None:
    assistant = tiny_assistant(llm=llm)
    chat = assistant.conversation()
    says(monkeypatch, assistant, "one", "bro")
    chat.ask("first?", video=random_frames(2), num_frames=2, stop="e")
    before = (list(chat.state.ids), list(chat.state.pending), chat.video, chat.clock, list(chat.messages))

    def fail(*_: Any) -> int:
        raise RuntimeError("no memory")

    monkeypatch.setattr("vlm.generate._choose", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        chat.ask("second?", video=random_frames(5), num_frames=5)
    assert (chat.state.ids, chat.state.pending, chat.video, chat.clock, chat.messages) == before
    says(monkeypatch, assistant, "two")
    chat.ask("second?")
    assert_cache_agrees(chat)


def test_a_given_history_is_read(tiny: Assistant) -> None:
    first = tiny.conversation()
    first.ask("what?", video=random_frames(4), num_frames=4, max_new_tokens=3)
    again = Chat(tiny, messages=list(first.messages))
    again.ask("and?", max_new_tokens=3)
    assert again.clock is not None and again.clock.duration == 4.0 and again.video is not None
    read = tiny.processor.prompt(again.messages[:-1]).ids
    assert again.state.ids[: len(read)] == read


def test_times_count_from_the_start_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assistant = tiny_assistant()
    chat = assistant.conversation()
    says(monkeypatch, assistant, "from <t0> to <t19>")
    texts = list(chat.stream("when?", video=random_frames(20), num_frames=4, start=5.0, end=18.0))
    assert chat.reply is not None
    assert chat.reply.text == texts[-1] == "from 5.0 s to 18.0 s"
    assert [(s.start, s.end) for s in chat.reply.spans] == [(5.0, 18.0)]
    assert "from 5.0 s to" in texts


def test_times_of_sound_alone_and_of_sound_after_a_video() -> None:
    pytest.importorskip("torchaudio")
    tower = {"num_mel_bins": 16, "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2}
    tower |= {"encoder_ffn_dim": 64, "max_source_positions": 100}
    assistant = tiny_assistant(audio_config={"mode": "features", "tower": tower, "stride": 5, "window": 2.0})
    sound = Audio(np.zeros((1, 32000), np.float32), 16000, start=3.0)
    chat = assistant.conversation()
    chat.ask("when?", audio=sound, max_new_tokens=1)
    assert chat._readable("at <t19>").text == "at 5.0 s"
    chat = assistant.conversation()
    for media, text in (({"video": random_frames(10)}, "at 10.0 s"), ({"audio": sound}, "at 5.0 s"), ({}, "at 5.0 s")):
        chat.ask("when?", max_new_tokens=1, **media)
        assert chat._readable("at <t19>").text == text
    assert chat.video is not None and chat.video.duration == 10.0


def test_sound_that_covers_part_of_a_video_is_on_its_clock() -> None:
    heard: list[int] = []

    def transcriber(samples: np.ndarray) -> list[TranscriptPiece]:
        heard.append(len(samples))
        return [TranscriptPiece(1.0, 2.0, "hello")]

    assistant = replace(tiny_assistant(audio_config={"mode": "transcript"}), transcriber=transcriber)  # type: ignore[arg-type]
    sound = Audio(np.zeros((2, 64000), np.float32), 16000, start=7.0)
    video = replace(load_video(random_frames(20), num_frames=4, start=1.0), audio=sound)
    chat = assistant.conversation()
    chat.ask("when?", video=video, max_new_tokens=1)
    assert heard == [64000]
    assert "<t7>hello<t8>" in assistant.processor.tokenizer.decode(chat.state.ids)
    assert assistant.chat("when?", audio=sound, max_new_tokens=1).text is not None
    with pytest.raises(ConfigError, match="8000 samples per second"):
        assistant.chat("when?", audio=replace(sound, rate=8000))


def test_marks_in_a_question_stay_words(tiny: Assistant) -> None:
    chat = tiny.conversation()
    chat.ask("{t:5}", max_new_tokens=1)
    assert "{t:5}" in tiny.processor.tokenizer.decode(chat.state.ids)


def test_half_a_character_or_half_a_time_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assistant = tiny_assistant(time={"codec": "digits", "interleave": False})
    says(monkeypatch, assistant, "café <d0><d0><d0><d7><dot><d5> ok")
    texts = list(assistant.stream("when?", video=random_frames(10)))
    assert texts[-1] == "café 7.5 s ok"
    assert all(texts[-1].startswith(text.rstrip()) for text in texts)
