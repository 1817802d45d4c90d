"""Decoding in a child process: same result, and nothing that happens there reaches the caller."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.vlm.media.clips import cut, encode, picture, regular
from vlm.errors import ConfigError, MediaError, MediaLimitError, TruncatedMediaWarning
from vlm.media import MediaLimits, load_audio, load_image, load_video
from vlm.media.isolate import _read_answer

GENEROUS = 240.0  # s; the tests may run on a busy machine


def test_the_child_returns_the_same_video(plain: Path) -> None:
    ours = load_video(plain, num_frames=6, size=32, start=0.5, audio_rate=8_000)
    theirs = load_video(plain, num_frames=6, size=32, start=0.5, audio_rate=8_000, timeout=GENEROUS)
    np.testing.assert_array_equal(theirs.frames, ours.frames)
    np.testing.assert_array_equal(theirs.timestamps, ours.timestamps)
    assert ours.audio is not None and theirs.audio is not None
    np.testing.assert_array_equal(theirs.audio.samples, ours.audio.samples)
    assert (theirs.info, theirs.duration, theirs.start, theirs.end) == (ours.info, ours.duration, ours.start, ours.end)


def test_sounds_and_pictures_come_back_as_well(plain: Path, tmp_path: Path) -> None:
    ours, theirs = (load_audio(plain, rate=8_000, start=1.0, timeout=timeout) for timeout in (None, GENEROUS))
    np.testing.assert_array_equal(theirs.samples, ours.samples)
    assert (theirs.rate, theirs.start) == (ours.rate, ours.start)
    Image.fromarray(picture(3)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", timeout=GENEROUS), picture(3))
    with pytest.raises(MediaError, match="no sound track"):
        load_audio(encode(tmp_path / "a.mp4", regular(2)), rate=8_000, timeout=GENEROUS)


def test_sources_without_a_path_are_read_by_the_parent(plain: Path) -> None:
    data = plain.read_bytes()
    with plain.open("rb") as file:
        file.seek(99)  # where the user left it does not matter
        sources: list[Any] = [file, memoryview(data)]
        for src in sources:
            assert len(load_video(src, num_frames=2, timeout=GENEROUS)) == 2
    assert len(load_video(np.zeros((4, 8, 8, 3), np.uint8), num_frames=2, timeout=GENEROUS)) == 2
    with pytest.raises(MediaError, match="neither a path"):
        load_video(5, num_frames=1, timeout=GENEROUS)  # type: ignore[arg-type]
    with pytest.raises(MediaError, match="leave timeout out"):
        load_video((n for n in (1, 2)), num_frames=1, timeout=GENEROUS)  # type: ignore[arg-type]


def test_errors_and_warnings_cross_over(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="No such file"):
        load_video(tmp_path / "absent.mp4", num_frames=1, timeout=GENEROUS)
    with pytest.raises(MediaLimitError, match="max_pixels"):
        path = encode(tmp_path / "a.mp4", regular(50), muxer={"movflags": "faststart"})
        load_video(path.read_bytes(), num_frames=1, limits=MediaLimits(max_pixels=10), timeout=GENEROUS)
    with pytest.warns(TruncatedMediaWarning), (cut(path, tmp_path / "b.mp4", 0.6)).open("rb") as file:
        assert len(load_video(file, num_frames=20, timeout=GENEROUS)) < 20


def test_too_slow_is_an_error_in_time(plain: Path) -> None:
    began = time.monotonic()
    with pytest.raises(MediaLimitError, match=r"plain\.mp4: was not decoded within 0\.01 s"):
        load_video(plain, num_frames=1, timeout=0.01)
    assert time.monotonic() - began < 60
    for bad in (0, -1, float("inf")):
        with pytest.raises(ConfigError):
            load_video(plain, num_frames=1, timeout=bad)


def test_the_child_imports_nothing_from_the_working_directory(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    assert len(load_video(plain, num_frames=2, timeout=GENEROUS)) == 2


def test_a_crash_of_the_child_is_a_media_error() -> None:
    with pytest.raises(MediaError, match=r"a\.mp4: the decoder process was killed by SIGSEGV"):
        _read_answer("a.mp4", b"", -11)
    with pytest.raises(MediaError, match="exit code 1"):
        _read_answer("a.mp4", b"half", 1)
