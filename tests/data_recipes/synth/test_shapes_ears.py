"""Windows of sound for nano's ears: the labels are where it is loud, and nothing depends on anything but seed and index."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_recipes.synth.shapes_ears import ears
from data_recipes.synth.shapes_scene import SOUND_RATE, tone
from vlm.errors import ConfigError


def test_labels_say_where_a_beep_is_in_the_spectrogram() -> None:
    data, right, total = ears(1000, 0), 0, 0
    for index in range(60):
        item = data[index]
        assert item["mel"].shape == (16, 1000) and item["labels"].shape == (100,)
        if not item["labels"].any():
            continue
        loudest = item["mel"].amax(0).reshape(100, 10).mean(1)
        total += 100
        right += int(((loudest > loudest.max() - 0.5) == item["labels"].bool()).sum())
    assert total > 2000 and right / total > 0.9


def test_a_window_is_a_function_of_seed_and_index() -> None:
    first, again, other = ears(10, 0)[3], ears(1000, 0)[3], ears(10, 1)[3]
    assert torch.equal(first["mel"], again["mel"]) and torch.equal(first["labels"], again["labels"])
    assert not torch.equal(first["mel"], other["mel"])


def test_silence_occurs_and_so_do_many_beeps() -> None:
    starts = [int((torch.diff(ears(1000, 2)[i]["labels"], prepend=torch.zeros(1)) == 1).sum()) for i in range(80)]
    assert {0, 1, 2, 3, 4} <= set(starts)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"seconds=1\.0"):
        ears(10, 0, seconds=1.0)
    with pytest.raises(IndexError, match="item 10 of 10"):
        ears(10, 0)[10]


def test_a_tone_has_its_pitch_and_fades() -> None:
    beep = tone(SOUND_RATE, 1000.0)
    assert beep.dtype == np.float32 and abs(float(np.abs(beep).max()) - 0.5) < 0.01
    assert np.abs(np.fft.rfft(beep)).argmax() == 1000
    assert abs(beep[0]) < 1e-3 and abs(beep[-1]) < 0.01
