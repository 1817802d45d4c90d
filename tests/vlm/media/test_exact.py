"""Exactness: for any codec, container and request, the frame shown at the target time comes back with its own time."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.vlm.media.clips import encode, number_of, numbers_of, regular, shown_at
from vlm.media import iter_video, load_video, probe

FINE = Fraction(1, 90_000)

Make = Callable[[Path], Path]
KINDS: dict[str, Make] = {
    "mp4-bframes": lambda d: encode(d / "a.mp4", regular(75), options={"bf": "2"}),
    "mp4-pyramid": lambda d: encode(d / "a.mp4", regular(75), options={"bf": "3", "b-pyramid": "normal"}, gop=25),
    "mp4-open-gop": lambda d: encode(
        d / "a.mp4", regular(75), options={"bf": "3", "x264-params": "open-gop=1:scenecut=0:b-adapt=0"}
    ),
    "mp4-one-gop": lambda d: encode(d / "a.mp4", regular(75), options={"bf": "2"}, gop=1000),
    "mp4-intra": lambda d: encode(d / "a.mp4", regular(75), gop=1),
    "mp4-mpeg4": lambda d: encode(d / "a.mp4", regular(75), codec="mpeg4", options={"qscale": "2"}),
    "mp4-hevc": lambda d: encode(
        d / "a.mp4", regular(50), codec="libx265", options={"x265-params": "log-level=error", "preset": "ultrafast"}
    ),
    "mkv-h264": lambda d: encode(d / "a.mkv", regular(75), options={"bf": "2"}),
    "webm-vp9": lambda d: encode(d / "a.webm", regular(50), codec="libvpx-vp9", options={"deadline": "realtime"}),
    "ts-h264": lambda d: encode(d / "a.ts", regular(75), options={"bf": "2"}),
    "avi-mpeg4": lambda d: encode(
        d / "a.avi", list(range(75)), base=Fraction(1, 25), codec="mpeg4", options={"qscale": "2"}
    ),
    "mp4-vfr": lambda d: encode(
        d / "a.mp4", [round(40 * i + 300 * (i // 10) + 11 * (i % 3)) for i in range(75)], options={"bf": "2"}
    ),
    "mkv-vfr": lambda d: encode(d / "a.mkv", [7 * i * i + 3 * i for i in range(60)], options={"bf": "2"}),
    "mp4-late-start": lambda d: encode(d / "a.mp4", [5000 + 40 * i for i in range(75)], options={"bf": "2"}),
    "ts-fine-clock": lambda d: encode(d / "a.ts", [3003 * i for i in range(75)], base=FINE, options={"bf": "2"}),
    "mp4-10-bit": lambda d: encode(d / "a.mp4", regular(50), pixels="yuv420p10le"),
    "mp4-slices": lambda d: encode(d / "a.mp4", regular(50), options={"slices": "4", "bf": "2"}),
    "mp4-interlaced": lambda d: encode(d / "a.mp4", regular(50), options={"flags": "+ildct+ilme", "bf": "2"}),
    "fragmented": lambda d: encode(
        d / "a.mp4", regular(75), options={"bf": "2"}, muxer={"movflags": "frag_keyframe+empty_moov"}
    ),
}


@pytest.fixture(scope="module", params=list(KINDS))
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A file and the true times of its frames, read by decoding it from front to back without any of our code."""
    import av

    path = KINDS[request.param](tmp_path_factory.mktemp("exact"))
    with av.open(str(path)) as container:
        times = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]  # type: ignore[operator]
    return path, np.asarray(times) - times[0]


def test_every_frame_comes_once_with_its_own_time(video: tuple[Path, np.ndarray]) -> None:
    path, times = video
    loaded = load_video(path)
    assert numbers_of(loaded.frames) == list(range(len(times)))
    np.testing.assert_allclose(loaded.timestamps, times, atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 7, 33, 150])
def test_the_frame_shown_at_each_target_is_returned(video: tuple[Path, np.ndarray], count: int) -> None:
    path, times = video
    loaded = load_video(path, num_frames=count)
    targets = (np.arange(count) + 0.5) * loaded.duration / count
    wanted = [shown_at(t, times) for t in targets]
    assert numbers_of(loaded.frames) == wanted
    np.testing.assert_allclose(loaded.timestamps, times[wanted], atol=1e-9)


def test_random_windows(video: tuple[Path, np.ndarray]) -> None:
    path, times = video
    rng = np.random.default_rng(3)
    duration = probe(path).duration or 0.0
    for _ in range(8):
        start, end = np.sort(rng.uniform(0, duration, 2))
        if end - start < 0.01:
            continue
        one = load_video(path, num_frames=5, start=start, end=end, sampling="endpoints", size=(32, 48))
        wanted = [shown_at(t, times) for t in np.linspace(start, end, 5)]
        assert numbers_of(one.frames) == wanted
        whole = load_video(path, start=start, end=end)
        inside = [i for i, t in enumerate(times) if start < t < end - 1e-6]
        assert numbers_of(whole.frames) == sorted({shown_at(start, times), *inside})


def test_streaming_gives_the_same_frames(video: tuple[Path, np.ndarray]) -> None:
    path, _ = video
    whole = load_video(path, num_frames=20, size=48)
    parts = list(iter_video(path, num_frames=20, size=48, batch_frames=7))
    assert [len(frames) for frames, _ in parts] == [7, 7, 6]
    np.testing.assert_array_equal(np.concatenate([frames for frames, _ in parts]), whole.frames)
    np.testing.assert_array_equal(np.concatenate([times for _, times in parts]), whole.timestamps)


def test_keyframe_snap_is_the_nearest_earlier_keyframe(video: tuple[Path, np.ndarray]) -> None:
    import av

    path, times = video
    with av.open(str(path)) as container:
        keys = [i for i, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    loaded = load_video(path, num_frames=9, snap="keyframe")
    targets = (np.arange(9) + 0.5) * loaded.duration / 9
    wanted = [max((k for k in keys if times[k] <= t), default=keys[0]) for t in targets]
    assert loaded.snap == "keyframe"
    assert [number_of(frame) for frame in loaded.frames] == wanted
    np.testing.assert_allclose(loaded.timestamps, times[wanted], atol=1e-9)


TICK = Fraction(1, 25)
OLD: dict[str, Make] = {
    "avi-bframes": lambda d: encode(d / "a.avi", list(range(75)), base=TICK, options={"bf": "2"}),
    "avi-pyramid": lambda d: encode(
        d / "a.avi", list(range(75)), base=TICK, options={"bf": "3", "b-pyramid": "normal"}, gop=25
    ),
    "avi-mpeg4-bframes": lambda d: encode(
        d / "a.avi", list(range(75)), base=TICK, codec="mpeg4", options={"bf": "2", "qscale": "2"}
    ),
    "mpeg-2": lambda d: encode(
        d / "a.mpg", list(range(75)), base=TICK, codec="mpeg2video", container="vob", options={"qscale": "2"}
    ),
    "mpeg-1-bframes": lambda d: encode(
        d / "a.mpg",
        list(range(75)),
        base=TICK,
        codec="mpeg1video",
        container="mpeg",
        options={"bf": "2", "qscale": "2"},
    ),
}


@pytest.mark.filterwarnings("error::vlm.errors.MediaWarning")
@pytest.mark.parametrize("kind", list(OLD))
def test_old_containers_that_state_no_times_or_only_estimates(kind: str, tmp_path: Path) -> None:
    path = OLD[kind](tmp_path)
    every = load_video(path)
    assert every.duration == pytest.approx(3.0, abs=1e-6)
    assert numbers_of(every.frames) == list(range(75))
    np.testing.assert_allclose(every.timestamps, np.arange(75) / 25, atol=1e-6)
    for start, end in [(0.0, 3.0), (0.37, 1.61), (2.5, 3.0)]:
        some = load_video(path, num_frames=9, start=start, end=end)
        wanted = [shown_at(t, every.timestamps) for t in start + (np.arange(9) + 0.5) * (end - start) / 9]
        assert numbers_of(some.frames) == wanted
        np.testing.assert_allclose(some.timestamps, np.asarray(wanted) / 25, atol=1e-6)
    keys = load_video(path, num_frames=5, snap="keyframe")
    assert numbers_of(keys.frames) == np.round(keys.timestamps * 25).astype(int).tolist()


@pytest.mark.filterwarnings("error::vlm.errors.MediaWarning")
def test_an_avi_with_sound_is_whole(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.avi", list(range(75)), base=TICK, options={"bf": "0"}, sound=(16_000, 3.0))
    assert numbers_of(load_video(path).frames) == list(range(75))
    assert len(load_video(path, num_frames=300)) == 300


@pytest.mark.filterwarnings("error::vlm.errors.MediaWarning")
@pytest.mark.parametrize("seconds", [1.0, 10.0])
def test_a_length_stated_for_all_streams_together_is_not_taken_for_that_of_the_picture(
    tmp_path: Path, seconds: float
) -> None:
    path = encode(tmp_path / "a.mkv", regular(75), options={"bf": "2"}, sound=(16_000, seconds))
    data = path.read_bytes().replace(b"DURATION", b"DURATIOX")  # Matroska's length of each stream
    for src in (data, data.replace(b"\x23\xe3\x83\x84", b"\x23\xe3\x85\x84")):  # and of each frame
        video = load_video(src, num_frames=10)
        assert video.duration == pytest.approx(3.0, abs=0.01)
        assert numbers_of(video.frames) == [3, 11, 18, 26, 33, 41, 48, 56, 63, 71]
        assert len(load_video(src)) == 75
