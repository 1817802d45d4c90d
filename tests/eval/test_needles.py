"""Hiding pictures: exactly at their depth, the right number of frames, rising times, sound that stays with its picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eval.needles import guess_chance, hide, insert_needle, position, rotations
from eval.niah_sets import digits
from tests.eval.oracles import SIZE, Noise, sounding
from vlm.errors import ConfigError

DIGITS = list(digits(SIZE).needles)
CHOICES = [replace(n, question="Which digit?", options=("0", "1", "2", "3")) for n in DIGITS[:4]]


@pytest.mark.parametrize(("depth", "index"), [(0.0, 0), (0.2, 2), (0.25, 2), (0.5, 5), (0.999, 9), (1.0, 10)])
def test_inserting_adds_a_frame_at_the_depth(depth: float, index: int) -> None:
    hay, image = Noise()(10), DIGITS[0].image
    video, place = insert_needle(hay, image, depth)
    assert place == index
    assert np.array_equal(video.frames[index], image)
    assert np.array_equal(np.delete(video.frames, index, axis=0), hay.frames)
    assert video.timestamps.tolist() == [i + 0.5 for i in range(11)]
    assert (video.duration, video.end) == (11.0, 11.0)


@pytest.mark.parametrize(("depth", "index"), [(0.0, 0), (0.5, 4), (1.0, 9)])
def test_replacing_keeps_length_and_times(depth: float, index: int) -> None:
    hay, image = Noise()(10), DIGITS[0].image
    before = hay.frames.copy()
    video, place = insert_needle(hay, image, depth, mode="replace")
    assert place == index
    assert np.array_equal(video.frames[index], image)
    assert np.array_equal(np.delete(video.frames, index, axis=0), np.delete(hay.frames, index, axis=0))
    assert np.array_equal(hay.frames, before)
    assert np.array_equal(video.timestamps, hay.timestamps)
    assert video.duration == hay.duration


@pytest.mark.parametrize("count", [1, 7, 100, 1400, 6000])
def test_depths_are_exact(count: int) -> None:
    assert position(0.0, count, "insert") == position(0.0, count, "replace") == 0
    assert position(1.0, count, "insert") == count
    assert position(1.0, count, "replace") == count - 1
    hundredths = [position(i / 100, count, "insert") for i in range(101)]
    assert hundredths == [i * count // 100 for i in range(101)]


@pytest.mark.parametrize("seed", range(20))
def test_many_pictures_land_where_they_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hay = Noise()(int(rng.integers(1, 12)))
    spots = rng.integers(0, len(hay.frames) + 1, int(rng.integers(1, 8))).tolist()
    pictures = [(spot, np.full((SIZE, SIZE, 3), 100 + i, np.uint8)) for i, spot in enumerate(spots)]
    video, places = hide(hay, pictures)
    assert len(video.frames) == len(video.timestamps) == len(hay.frames) + len(spots)
    assert [int(video.frames[p].min()) for p in places] == [100 + i for i in range(len(spots))]
    assert np.array_equal(np.delete(video.frames, places, axis=0), hay.frames)
    assert (np.diff(video.timestamps) > 0).all()
    assert video.timestamps[-1] < video.end == len(video.frames)
    before = [sum(1 for p in np.delete(np.arange(len(video.frames)), places) if p < place) for place in places]
    assert before == spots


def test_pictures_at_one_place_follow_one_another() -> None:
    pictures = [(1, DIGITS[i].image) for i in (4, 2, 9)]
    video, places = hide(Noise()(3), pictures)
    assert places == [1, 2, 3]
    assert np.array_equal(video.frames[2], DIGITS[2].image)
    with pytest.raises(ConfigError, match="3 pictures do not fit into 3 frames"):
        hide(Noise()(3), pictures, "replace")


def test_sound_stays_with_its_picture() -> None:
    video, _ = hide(sounding(6), [(2, DIGITS[0].image), (6, DIGITS[1].image)])
    assert video.audio is not None
    heard, rate = video.audio.samples[0], video.audio.rate
    assert len(heard) == 8 * rate
    for frame, second in ((1, 1), (4, 3), (6, 5)):  # frame 3 of the haystack is frame 4 of the video
        assert heard[round((video.timestamps[frame]) * rate)] == pytest.approx(second + 0.5)
    assert not heard[250:350].any(), "the needle before frame 2 (at 2.5 s) is silent"


def test_needles_take_the_size_of_the_frames() -> None:
    video, _ = insert_needle(Noise()(3), np.full((90, 70, 3), 200, np.uint8), 0.0)
    assert video.frames.shape == (4, SIZE, SIZE, 3)
    assert (video.frames[0] == 200).all()


def test_wrong_placements_are_refused() -> None:
    with pytest.raises(ConfigError, match="insert, replace"):
        insert_needle(Noise()(3), DIGITS[0].image, 0.0, mode="glue")
    with pytest.raises(ConfigError, match="depth 2"):
        insert_needle(Noise()(3), DIGITS[0].image, 2.0)
    with pytest.raises(ConfigError, match="contain '7'"):
        replace(DIGITS[7], options=("1", "2"))


def test_the_right_option_stands_behind_every_letter_once() -> None:
    asked = list(rotations(CHOICES[2]))
    assert [letter for _, letter in asked] == ["A", "B", "C", "D"]
    for text, letter in asked:
        assert f"{letter}. 2" in text.splitlines()
        assert sorted(line[3:] for line in text.splitlines()[1:5]) == ["0", "1", "2", "3"]
    assert list(rotations(DIGITS[3])) == [("What digit is shown?", "3")]


def test_chance_is_one_of_the_options_or_of_the_answers_that_occur() -> None:
    mixed = [*DIGITS[4:6], *CHOICES]
    assert [guess_chance(n, mixed) for n in mixed] == [0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
