"""Needles of the training data are where their answers say, and nothing depends on anything but seed and index."""

from __future__ import annotations

import numpy as np
import pytest

from data_recipes.sample import rng_for
from data_recipes.synth.needles import QUESTIONS, Haystacks, Transcripts, _cuts, haystacks, needle_frame, transcripts
from data_recipes.synth.shapes_phrasings import NUMBERS
from vlm.errors import ConfigError
from vlm.time import frame_edges


def test_a_haystack_shows_its_needles_at_the_stated_times() -> None:
    data, seen = Haystacks("train", 0, frames=(6, 30)), set()
    for index in range(60):
        sample = data[index]
        video = sample.messages[0]["content"][0]["video"]
        assert 6 <= len(video.frames) - len(sample.meta["digits"]) <= 30
        assert len(video.frames) == len(video.timestamps) == sample.meta["frames"]
        np.testing.assert_allclose(np.diff(video.timestamps), np.diff(video.timestamps)[0])
        edges = frame_edges(video.timestamps, video.duration)
        np.testing.assert_allclose(edges[[0, -1]], [0, video.duration], atol=1e-9)
        for turn in sample.meta["turns"]:
            seen.add(turn.kind)
            digits = sample.meta["digits"]
            if turn.kind == "digit_when":
                (span,) = turn.spans
                place = int(np.argmin(np.abs(edges - span.start)))
                np.testing.assert_allclose([edges[place], edges[place + 1]], [span.start, span.end], atol=1e-6)
                others = np.delete(video.frames, place, axis=0).astype(int)
                # A frame of its own: unlike its neighbours, which are alike among themselves.
                near = others[max(0, place - 1)]
                assert np.abs(video.frames[place] - near).mean() > 5
            elif turn.kind == "digit":
                assert len(digits) <= 1 and turn.answer == (digits[0] if digits else "none")
            elif turn.kind == "digits":
                assert turn.answer == (", ".join(digits) or "none")
            elif turn.kind == "digit_count":
                assert turn.answer == NUMBERS[len(digits)]
            elif turn.kind == "digit_presence":
                assert turn.answer == ("yes" if digits else "no")
    assert seen >= set(QUESTIONS)


def test_long_clips_are_cut_into_scenes() -> None:
    rng = rng_for(0)
    for count in (2, 24, 64, 65, 66, 129, 1400):
        lengths = _cuts(rng, count)
        assert sum(lengths) == count and min(lengths) >= 2 and max(lengths) <= 65
        assert (len(lengths) == 1) == (count <= 64)
    sample = Haystacks("train", 0, frames=(200, 200))[0]
    assert not {t.kind for t in sample.meta["turns"]} & {"list", "count", "colours", "presence"}


def test_a_transcript_says_its_needles_at_the_stated_times() -> None:
    data = Transcripts("train", 0, tokens=(100, 600))
    for index in range(40):
        sample = data[index]
        pieces = sample.messages[0]["content"][0]["pieces"]
        said = [(start, end, words.split()[-1]) for start, end, words in pieces if "digit" in words]
        assert [digit for *_, digit in said] == sample.meta["digits"]
        for turn in sample.meta["turns"]:
            if turn.kind == "digit_when":
                assert said[0][:2] == (turn.spans[0].start, turn.spans[0].end)


def test_lengths_are_those_of_the_samples_and_about_log_uniform() -> None:
    data = haystacks("train", seed=3, frames=[8, 128], size=64)
    for index in range(5):
        assert data[index].meta["frames"] - len(data[index].meta["digits"]) == data.lengths[index]
    assert 0.3 < (data.lengths < 32).mean() < 0.7  # half of [8, 128] on a log scale
    texts = transcripts("train", seed=3, tokens=[128, 1024], size=8)
    assert texts.lengths.min() >= 128 and texts.lengths.max() <= 1024
    for index in range(8):
        pieces = texts[index].messages[0]["content"][0]["pieces"]
        assert len(pieces) == texts.lengths[index] // 6


def test_items_depend_on_seed_split_and_index_only() -> None:
    first, again, other = (Haystacks("train", seed, frames=(4, 9)) for seed in (0, 0, 1))
    for index in (0, 5):
        a, b, c = (d[index].messages[0]["content"][0]["video"].frames for d in (first, again, other))
        assert np.array_equal(a, b) and not (a.shape == c.shape and np.array_equal(a, c))
    held_out = Haystacks("heldout", 0, frames=(4, 9))[0]
    assert held_out.meta["turns"] != first[0].meta["turns"]


def test_as_many_clips_as_asked_for_have_no_needle() -> None:
    for none in (0.0, 0.5, 1.0):
        data = haystacks("train", seed=0, frames=[2, 4], image_size=16, none=none)
        without = sum(not data[i].meta["digits"] for i in range(60)) / 60
        assert without == pytest.approx(none, abs=0.2) and (without == none or none == 0.5)
    with pytest.raises(ConfigError, match=r"none=1\.5"):
        haystacks("train", seed=0, frames=[2, 4], none=1.5)


def test_needles_differ_by_digit_and_seed() -> None:
    frames = [needle_frame(str(d)) for d in range(10)]
    assert len({f.tobytes() for f in frames}) == 10
    assert np.array_equal(needle_frame("3"), frames[3]) and not np.array_equal(needle_frame("3", seed=1), frames[3])


@pytest.mark.parametrize("frames", [[1, 5], [9, 5], [5], [5, 6, 7]])
def test_bad_bounds_are_named(frames: list[int]) -> None:
    with pytest.raises(ConfigError, match="frames="):
        haystacks("train", seed=0, frames=frames)
    with pytest.raises(ConfigError, match="split"):
        haystacks("dev", seed=0, frames=[4, 5])
    with pytest.raises(ConfigError, match="tokens="):
        transcripts("train", seed=0, tokens=[5, 10])
