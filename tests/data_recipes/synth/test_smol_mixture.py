"""The training mixture of smol: all three sorts come up, each with its own media and words, and always the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_recipes.synth.smol_mixture import SmolMixture
from data_recipes.synth.speech import brown_sentences
from tests.data_recipes.synth.bank import small_bank
from vlm.errors import DataError


def test_brown_sentences_are_clean() -> None:
    try:
        sentences = brown_sentences()
    except DataError as error:
        pytest.skip(str(error))
    assert len(sentences) > 10_000
    assert all(s[-1] in ".?!" and "/" not in s and " ." not in s and " ," not in s for s in sentences[:2000])


def test_three_sorts_with_their_own_media(tmp_path: Path) -> None:
    try:
        brown_sentences()
        mixture = SmolMixture(60, stills=0.4, listening=0.3, bank=small_bank(tmp_path))
        samples = [mixture[i] for i in range(60)]
    except DataError as error:
        pytest.skip(str(error))
    kinds = [sample.messages[0]["content"][0]["type"] for sample in samples]
    assert min(kinds.count(k) for k in ("video", "image", "transcript")) >= 5
    for sample, kind in zip(samples, kinds, strict=True):
        questions = " ".join(m["content"][-1]["text"] for m in sample.messages if m["role"] == "user")
        assert "video" not in questions or kind == "video"
        if kind == "image":
            assert sample.messages[0]["content"][0]["features"].shape == (49, 1280)
        if kind == "transcript":
            ((start, end, text),) = sample.messages[0]["content"][0]["pieces"]
            assert 0 <= start < end <= sample.meta["duration"]
            assert sample.messages[1]["content"][0]["text"] == text
    again = SmolMixture(60, stills=0.4, listening=0.3, bank=mixture.bank)[7]
    assert again.id == samples[7].id and again.messages[1] == samples[7].messages[1]
    first = samples[7].messages[0]["content"][0].get("features", np.zeros(1))
    assert np.array_equal(again.messages[0]["content"][0].get("features", np.zeros(1)), first)


def test_clips_have_as_many_shots_as_asked_for(tmp_path: Path) -> None:
    try:
        mixture = SmolMixture(30, stills=0.0, listening=0.0, shots=(12, 20), frames=64, bank=small_bank(tmp_path))
        samples = [mixture[i] for i in range(10)]
    except DataError as error:
        pytest.skip(str(error))
    counts = {len(sample.meta["clip"].shots) for sample in samples}
    assert counts <= set(range(12, 21)) and len(counts) > 3
    assert all(len(s.messages[0]["content"][0]["segments"]) == len(s.meta["clip"].shots) for s in samples)
