"""`AssistantModel`: the same words and scores as a plain chat and a plain forward, with frames encoded and prompts read once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval.assistant import AssistantModel
from eval.haystacks import ScenesHaystack
from eval.needles import insert_needle
from eval.niah_sets import digits
from tests.eval.oracles import Noise
from tests.tiny import tiny_assistant
from vlm.chat import Assistant
from vlm.errors import ConfigError
from vlm.media import Audio, Video, load_video

IMAGE = digits(32).needles[0].image
QUESTIONS = ("What is shown?", "What digit?", "When?")
CODECS = ({"codec": "relative", "num_tokens": 20, "interleave": True}, {"codec": "seconds"})


@pytest.fixture(scope="module")
def tiny() -> Assistant:
    return tiny_assistant()


def message(video: Video, question: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "video", "video": video}, {"type": "text", "text": question}]}


def plain_logits(assistant: Assistant, video: Video, question: str, answer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher forcing as training does it: one forward over prompt and answer, pixels in."""
    example = assistant.processor.training_example([message(video, question), {"role": "assistant", "content": answer}])
    batch = assistant.processor.collate([example])
    places = (batch["labels"][0] != -100).nonzero().flatten()[:-1]
    with torch.inference_mode():
        logits = assistant.model(**batch, loss_only=False).logits[0, places - 1]
    return batch["labels"][0, places], logits


def test_it_answers_as_in_chat(tiny: Assistant, clip: Path) -> None:
    model = AssistantModel(tiny, max_new_tokens=8)
    video = load_video(clip, num_frames=5, size=32)
    for question in (*QUESTIONS, *QUESTIONS[:1]):
        reply = tiny.chat(question, video=video, max_new_tokens=8)
        assert model.answer(video, question) == reply.raw
        assert model.count_tokens(video, question) == reply.usage.prompt_tokens


@pytest.mark.parametrize("time", CODECS, ids=lambda t: t["codec"])
@pytest.mark.parametrize("llm", ["llama", "gpt2"])
def test_forced_scores_equal_a_plain_training_forward(llm: str, time: dict[str, Any]) -> None:
    text = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 2048} if llm == "gpt2" else {}
    assistant = tiny_assistant(1, llm=llm, text=text, time=time)
    model, hay = AssistantModel(assistant, max_new_tokens=4), Noise()(6)
    for depth in (0.0, 0.5, 1.0):
        video = insert_needle(hay, IMAGE, depth)[0]
        for question in QUESTIONS:
            model.answer(video, question)
            for answer in ("seven", "7", "{t:1.50} to {t:3.00}"):
                ids, wanted = plain_logits(assistant, video, question, answer)
                found_ids, found = model._forced(video, question, answer)
                assert torch.equal(found_ids, ids)
                # float32; the prompt, its last token and the answer are read apart, in features that were encoded in other batches
                torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_cached_features_are_those_of_the_tower(tiny: Assistant) -> None:
    model, hay = AssistantModel(tiny, max_cached_frames=4), Noise()(40)
    for depth in (0.0, 1.0, 0.5):
        frames = insert_needle(hay, IMAGE, depth)[0].frames
        from vlm.prepare import normalise

        with torch.inference_mode():
            plain = tiny.model.encode_frames(normalise(frames, tiny.processor.pixels))
        torch.testing.assert_close(model._encode(frames), plain, rtol=1e-4, atol=1e-5)  # other batches, other roundings


def test_teacher_forcing_asks_whether_the_greedy_words_begin_with_the_answer(nano: Assistant) -> None:
    model, question = AssistantModel(nano), "What digit is shown?"
    needles, hay = digits(64).needles, ScenesHaystack(64)(8)
    heard = []
    for needle in needles[3:7]:
        video = insert_needle(hay, needle.image, 0.5)[0]
        heard.append(model.answer(video, question))
        forced = [n.answer for n in needles if model.forced_match(video, question, n.answer)]
        assert forced == [n.answer for n in needles if n.answer == heard[-1]]
        assert model.answer(video, question) == heard[-1], "forcing leaves no trace"
    assert any(word.isdecimal() for word in heard)


def test_a_model_that_learnt_one_answer_scores_only_with_it() -> None:
    assistant, video = tiny_assistant(3), Noise()(4)
    messages = [message(video, "What digit?"), {"role": "assistant", "content": "42"}]
    batch = assistant.processor.collate([assistant.processor.training_example(messages)])
    optimizer = torch.optim.Adam(assistant.model.language_model.parameters(), lr=1e-2)
    for _ in range(25):
        optimizer.zero_grad()
        assistant.model(**batch).loss.backward()
        optimizer.step()
    model = AssistantModel(assistant)
    assert model.answer(video, "What digit?") == "42"
    assert model.forced_match(video, "What digit?", "42")
    assert not model.forced_match(video, "What digit?", "43")
    assert model.answer(video, "What digit?") == "42", "a wrong answer that was forced leaves no trace"


def counted(model: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the first argument of every call."""
    seen: list[int] = []
    plain = getattr(model, name)

    def call(first: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(first.shape[-1 if name == "fuse" else 0])
        return plain(first, *args, **kwargs)

    monkeypatch.setattr(model, name, call)
    return seen


def test_frames_are_encoded_once(tiny: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(tiny.model, "encode_frames", monkeypatch)
    model, hay = AssistantModel(tiny), Noise()(6)
    for depth in (0.0, 0.5, 1.0):
        model.count_tokens(insert_needle(hay, IMAGE, depth)[0], "?")
    assert sum(seen) == 7


def test_a_video_longer_than_the_cache_is_still_encoded_once(tiny: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(tiny.model, "encode_frames", monkeypatch)
    model, hay = AssistantModel(tiny, max_cached_frames=3), Noise()(9)
    for depth in (0.0, 1.0):
        model.count_tokens(insert_needle(hay, IMAGE, depth)[0], "?")
    assert sum(seen) == 10
    model.count_tokens(Noise()(2), "?")
    assert len(model._features) == 3


def test_a_prompt_is_read_once_and_other_questions_only_their_words(
    tiny: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = counted(tiny.model, "fuse", monkeypatch)
    model, video = AssistantModel(tiny, max_new_tokens=3), Noise()(6)
    model.answer(video, "What digit?")
    model.forced_match(video, "What digit?", "7")
    whole = model.count_tokens(video, "What digit?")
    assert seen[0] == whole
    model.answer(video, "What shape?")
    assert max(seen[1:]) < 30 < whole
    model.answer(replace(video), "What shape?")
    assert seen[-1] == model.count_tokens(video, "What shape?"), "another video is read from its beginning"


def test_sound_is_heard_as_in_chat() -> None:
    ears = {"mode": "features", "window": 2.0, "stride": 5, "connector": {"type": "linear"}, "tower": {
        "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 16,
        "max_source_positions": 100}, "rate": 16_000}  # fmt: skip
    assistant = tiny_assistant(audio_config=ears)
    tone = np.sin(np.arange(3 * 16_000, dtype=np.float32) / 9)[None]
    video = replace(Noise()(3), audio=Audio(tone, 16_000))
    model, replies = AssistantModel(assistant, max_new_tokens=6), []
    for clip in (video, replace(video, audio=Audio(0 * tone, 16_000)), replace(video, audio=None)):
        reply = assistant.chat("When?", video=clip, max_new_tokens=6)
        assert model.answer(clip, "When?") == reply.raw
        replies.append(model._forced(clip, "When?", "1")[1])
    assert not torch.equal(replies[0], replies[1])
    with pytest.raises(ConfigError, match="no ears"):
        AssistantModel(tiny_assistant()).answer(video, "When?")


def test_times_are_read_on_the_clock_of_the_video(tiny: Assistant) -> None:
    late = replace(Noise()(10), start=100.0, end=110.0, timestamps=np.arange(10) + 100.5)
    words = tiny.processor.codec.encode(5.0, 10.0)
    (span,) = AssistantModel(tiny).spans(late, f"at {words}")
    assert span.start == pytest.approx(105.0, abs=0.5)  # half of one of twenty steps
    assert AssistantModel(tiny).spans(late, "never") == []


def test_fingerprints_follow_the_weights() -> None:
    one, same, other = (AssistantModel(tiny_assistant(seed)).fingerprint() for seed in (0, 0, 1))
    assert one == same != other


@pytest.mark.parametrize("pooling", [{"mode": "segments"}, {"mode": "slowfast"}], ids=lambda p: p["mode"])
def test_other_poolings_answer_as_in_chat(pooling: dict[str, str]) -> None:
    assistant = tiny_assistant(pooling=pooling)
    video = insert_needle(Noise()(4), IMAGE, 0.5)[0]
    expected = assistant.chat("What?", video=video, max_new_tokens=4).raw
    assert AssistantModel(assistant, max_new_tokens=4).answer(video, "What?") == expected
