"""Haystacks: no needle in them, always the same, something moves, and enough frames however short the footage is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eval.haystacks import FootageHaystack, ScenesHaystack, footage
from vlm.errors import ConfigError
from vlm.media import write_video

SIZE = 32


def distinct(frames: np.ndarray) -> int:
    return len({frame.tobytes() for frame in frames})


@pytest.mark.parametrize("digits", [False, True])
def test_scenes_repeat_and_move(digits: bool) -> None:
    hay = ScenesHaystack(SIZE, seed=1, digits=digits)
    one = hay(300)
    assert one.frames.shape == (300, SIZE, SIZE, 3)
    assert np.array_equal(one.frames, hay(300).frames)
    assert not np.array_equal(one.frames, ScenesHaystack(SIZE, 2, digits)(300).frames)
    assert distinct(one.frames) > 150, "a scene that is stretched shows next to nothing new"
    assert one.timestamps.tolist() == [i + 0.5 for i in range(300)]
    assert (one.duration, one.end) == (300.0, 300.0)
    assert hay.name != ScenesHaystack(SIZE, 1, not digits).name
    assert len(hay(1).frames) == 1


def test_scenes_of_digits_hold_white_things_and_no_coloured_ones() -> None:
    drawn = [ScenesHaystack(SIZE, digits=digits)(200).frames.astype(int) for digits in (False, True)]
    coloured = [int((frames.max(-1) - frames.min(-1) > 60).sum()) for frames in drawn]
    assert coloured[0] > 1000
    assert coloured[1] == 0
    assert (drawn[1].min(-1) > 220).sum() > 500


def test_a_cut_comes_every_few_dozen_frames() -> None:
    frames = ScenesHaystack(SIZE)(400).frames.astype(int)
    jumps = np.flatnonzero(np.abs(np.diff(frames, axis=0)).mean((1, 2, 3)) > 8) + 1
    gaps = np.diff(np.concatenate([[0], jumps, [400]]))
    assert 6 <= len(jumps) <= 30
    assert gaps.max() <= 64


def test_footage_is_spread_over_all_files_at_its_own_times(clip: Path, tmp_path: Path) -> None:
    white = write_video(tmp_path / "white.mp4", np.full((60, 64, 64, 3), 250, np.uint8), fps=10.0)
    hay = FootageHaystack((clip, white), SIZE)
    video = hay(40)
    assert len(video.frames) == len(video.timestamps) == 40
    assert (np.diff(video.timestamps) > 0).all()
    shades = video.frames.mean((1, 2, 3))
    assert (shades[:10] < 210).all()
    assert (shades[10:] > 240).all()
    assert video.end == video.duration == pytest.approx(8.0, abs=0.2)
    assert video.timestamps[10] == pytest.approx(2.0, abs=0.2)


def test_short_footage_is_shown_again_in_pieces(clip: Path) -> None:
    hay = FootageHaystack((clip,), SIZE, seed=3)
    assert sum(hay.counts) == 20
    video = hay(150)
    assert len(video.frames) == len(video.timestamps) == 150
    assert np.array_equal(video.frames, hay(150).frames)
    assert not np.array_equal(video.frames, FootageHaystack((clip,), SIZE, seed=4)(150).frames)
    assert np.array_equal(video.frames[:20], hay(20).frames)
    assert (np.diff(video.timestamps) > 0).all()
    assert video.end == pytest.approx(15.0, abs=0.3)
    assert video.timestamps[-1] < video.end


def test_no_frame_of_a_picture_with_detail_is_shown_twice(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    hay = FootageHaystack((write_video(tmp_path / "noise.mp4", noise, fps=8.0),), SIZE)
    assert distinct(hay(96).frames) == 96


def test_names_follow_the_files_and_the_size(clip: Path, tmp_path: Path) -> None:
    other = write_video(tmp_path / "clip.mp4", np.full((20, 64, 64, 3), 9, np.uint8), fps=10.0)
    names = {
        FootageHaystack((clip,), SIZE).name,
        FootageHaystack((clip,), 64).name,
        FootageHaystack((other,), SIZE).name,
    }
    assert len(names) == 3
    assert all("clip.mp4" in name and str(tmp_path) not in name for name in names)


def test_a_folder_is_all_its_videos_in_order(clip: Path, tmp_path: Path) -> None:
    for name in ("b.mp4", "a.mp4"):
        (tmp_path / name).write_bytes(clip.read_bytes())
    (tmp_path / "notes.txt").write_text("not a video")
    assert [p.name for p in FootageHaystack.of(tmp_path, SIZE).paths] == ["a.mp4", "b.mp4"]
    assert len(FootageHaystack.of(tmp_path, SIZE)(30).frames) == 30
    assert FootageHaystack.of(clip, SIZE).paths == (clip,)
    with pytest.raises(ConfigError, match="haystack='nothing'"):
        FootageHaystack.of(tmp_path / "nothing", SIZE)


def test_the_rabbit_is_always_there() -> None:
    paths = footage()
    assert paths[-1].name == "big_buck_bunny.mp4"
    assert all(p.is_file() for p in paths)
