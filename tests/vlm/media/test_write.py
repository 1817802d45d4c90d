"""Writing: exact times, sound, streaming, and nothing left behind on failure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.vlm.media.clips import numbers_of, picture, tone
from vlm.errors import ConfigError
from vlm.media import Audio, load_video, write_video


@pytest.mark.parametrize("fps", [1.0, 12.5, 24, 30_000 / 1001, 60, 1000, 1 / 1500, 1 / 3400])
def test_frames_come_back_at_exactly_their_times(tmp_path: Path, fps: float) -> None:
    frames = np.stack([picture(i) for i in range(25)])
    path = write_video(tmp_path / "a.mp4", frames, fps=fps)
    video = load_video(path)
    assert numbers_of(video.frames) == list(range(25))
    np.testing.assert_allclose(video.timestamps, np.arange(25) / fps, atol=1e-4, rtol=1e-9)
    assert video.duration == pytest.approx(25 / fps, rel=1e-3)
    assert np.abs(video.frames.astype(int) - frames).mean() < 6
    assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")


def test_an_iterator_streams(tmp_path: Path) -> None:
    def frames() -> Iterator[np.ndarray]:
        for i in range(40):
            yield picture(i)

    video = load_video(write_video(tmp_path / "a.mp4", frames(), fps=20, gop=10, crf=30, preset="ultrafast"))
    assert numbers_of(video.frames) == list(range(40))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("start", [0.0, 0.75])
def test_sound_is_kept_with_its_offset(tmp_path: Path, channels: int, start: float) -> None:
    samples = np.repeat(tone(16_000, 2.0), channels, axis=0)
    frames = np.stack([picture(i) for i in range(40)])
    path = write_video(tmp_path / "a.mp4", frames, fps=10, audio=Audio(samples, 16_000, start))
    video = load_video(path, num_frames=4, audio_rate=16_000)
    assert video.audio is not None and video.audio.samples.shape[0] == channels
    silence = np.flatnonzero(np.abs(video.audio.samples[0]) > 0.2)[0] / 16_000
    assert video.audio.start + silence == pytest.approx(start, abs=0.03)
    assert np.abs(video.audio.samples).max() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("frames", "fps"),
    [
        (np.zeros((0, 64, 64, 3), np.uint8), 10),
        (np.zeros((2, 63, 64, 3), np.uint8), 10),
        (np.zeros((2, 64, 64, 3), np.float32), 10),
        (np.zeros((2, 64, 64), np.uint8), 10),
        ([picture(0), picture(1, 32, 32)], 10),
        (np.zeros((2, 64, 64, 3), np.uint8), 0),
        (np.zeros((2, 64, 64, 3), np.uint8), 1e-6),
        (np.zeros((2, 64, 64, 3), np.uint8), 1e6),
        (np.zeros((2, 64, 64, 3), np.uint8), float("nan")),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path, frames: np.ndarray, fps: float) -> None:
    (tmp_path / "a.mp4").write_bytes(b"older file")
    with pytest.raises(ConfigError):
        write_video(tmp_path / "a.mp4", frames, fps=fps)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"older file"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no folder .*absent; create it first"):
        write_video(tmp_path / "absent" / "a.mp4", [picture(0)], fps=10)
