"""Ears: log-mel parity with transformers, the feature path through the model, voiced ranges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from tests.tiny import tiny_assistant
from vlm.encoders.audio import AudioTower, _voiced_range, log_mel
from vlm.media import Audio

RATE = 16000


def tone(seconds: float, hertz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def test_log_mel_equals_the_feature_extractor_of_transformers() -> None:
    pytest.importorskip("torchaudio")
    wave = tone(2.0) + np.random.default_rng(0).normal(0, 0.01, 2 * RATE).astype(np.float32)
    reference = WhisperFeatureExtractor(feature_size=80)(wave, sampling_rate=RATE, return_tensors="pt").input_features[
        0
    ]
    # float32 against the extractor's float64 filters
    torch.testing.assert_close(log_mel(wave, rate=RATE, seconds=30.0), reference, rtol=0, atol=2e-3)


TOWER = {
    "num_mel_bins": 16,
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "max_source_positions": 100,
}


def test_long_sound_is_read_window_by_window_with_times_between() -> None:
    pytest.importorskip("torchaudio")
    ears = {"mode": "features", "tower": TOWER, "stride": 25, "window": 2.0}
    assistant = tiny_assistant(audio_config=ears, time={"codec": "relative", "num_tokens": 100, "interleave": True})
    wave = np.concatenate([tone(2.0), tone(2.0, 900.0), tone(1.0, 300.0)])
    processor, model = assistant.processor, assistant.model

    def prepared(samples: np.ndarray) -> dict[str, torch.Tensor]:
        audio = {"type": "audio", "audio": Audio(samples[None], RATE)}
        return dict(processor([{"role": "user", "content": [audio, {"type": "text", "text": "what?"}]}]))

    whole = prepared(wave)
    assert whole["audio_lengths"].tolist() == [4, 4, 2] and whole["mel"].shape == (3, 16, 200)
    parts = [prepared(wave[first : first + 2 * RATE]) for first in range(0, len(wave), 2 * RATE)]
    with torch.inference_mode():
        together = model.audio_tokens(whole["mel"], whole["audio_lengths"])
        apart = torch.cat([model.audio_tokens(p["mel"], p["audio_lengths"]) for p in parts])
    torch.testing.assert_close(together, apart)
    words = processor.tokenizer.decode(whole["input_ids"][0]).replace(" ", "")
    assert "<t0><audio><audio><t20><audio><audio><t40>" in words and "<audio><t99>" in words


def _words(part: dict[str, object], **ears: object) -> str:
    config = {"mode": "features", "tower": TOWER, "stride": 25, "window": 2.0, **ears}
    assistant = tiny_assistant(audio_config=config, time={"codec": "relative", "num_tokens": 101, "interleave": True})
    prompt = assistant.processor.prompt([{"role": "user", "content": [{"type": "audio", **part}]}])
    return assistant.processor.tokenizer.decode(prompt.ids).replace(" ", "")


def test_sound_of_a_video_is_timed_in_its_window() -> None:
    pytest.importorskip("torchaudio")
    sound = Audio(tone(2.0)[None], RATE, start=7.0)
    assert "<t0><audio><audio><t50><audio><audio><t100>" in _words({"audio": sound})
    assert "<t25><audio><audio><t30><audio><audio><t35>" in _words({"audio": sound, "offset": 5.0, "duration": 20.0})
    assert _words({"audio": sound, "offset": 1e-9, "duration": 2.0 + 1e-9}) == _words({"audio": sound})


def test_times_stay_true_when_the_stride_does_not_divide_the_window() -> None:
    pytest.importorskip("torchaudio")
    words = _words({"audio": Audio(tone(10.0)[None], RATE)}, window=1.25)
    assert words.count("<audio>") == 8 * 3
    assert "<t85><audio><audio><t92><audio><audio><t100>" in words


def test_the_audio_tower_takes_its_attention_implementation() -> None:
    assistant = tiny_assistant(audio_config={"mode": "features", "tower": TOWER})
    config = assistant.model.config.audio_config
    config._attn_implementation = "eager"
    assert AudioTower(config).encoder.config._attn_implementation == "eager"


def test_sound_goes_through_the_feature_path() -> None:
    pytest.importorskip("torchaudio")
    assistant = tiny_assistant(audio_config={"mode": "features", "tower": TOWER, "stride": 5, "window": 2.0})
    sound = {"type": "audio", "audio": Audio(tone(1.0)[None], RATE)}
    batch = assistant.processor([{"role": "user", "content": [sound, {"type": "text", "text": "what?"}]}])
    assert batch["audio_lengths"].tolist() == [10]
    assert int((batch["input_ids"] == assistant.model.config.audio_token_id).sum()) == 10
    quiet = {**batch, "mel": torch.zeros_like(batch["mel"])}
    heard, silent = assistant.model(**batch).logits, assistant.model(**quiet).logits
    assert torch.isfinite(heard).all() and not torch.allclose(heard, silent)
    assert assistant.chat("what?", audio=sound["audio"], max_new_tokens=3).usage.completion_tokens <= 3


def test_voiced_range_finds_the_loud_part() -> None:
    wave = np.concatenate([np.zeros(RATE, np.float32), tone(1.5), np.zeros(RATE // 2, np.float32)])
    start, end = _voiced_range(wave, RATE)
    assert start == pytest.approx(1.0, abs=0.06) and end == pytest.approx(2.5, abs=0.06)
    assert _voiced_range(np.zeros(RATE, np.float32), RATE) == (0.0, 0.0)
    assert _voiced_range(np.zeros(0, np.float32), RATE) == (0.0, 0.0)
