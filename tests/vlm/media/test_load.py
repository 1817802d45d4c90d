"""Sources, sizes, times and arguments of `load_video`, `iter_video` and `probe`."""

from __future__ import annotations

import io
import os
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.vlm.media.clips import encode, number_of, numbers_of, picture, regular
from vlm.errors import ConfigError, MediaError, MediaLimitError, TruncatedMediaWarning
from vlm.media import MediaLimits, iter_video, load_video, probe


def test_path_bytes_and_file_objects_give_the_same_frames(plain: Path) -> None:
    reference = load_video(str(plain), num_frames=9)
    data = plain.read_bytes()
    with plain.open("rb") as file:
        file.seek(77)  # where the user left it does not matter
        sources: list[Any] = [plain, data, bytearray(data), memoryview(data), io.BytesIO(data), file, _Pipe(data)]
        for src in sources:
            video = load_video(src, num_frames=9)
            np.testing.assert_array_equal(video.frames, reference.frames)
            np.testing.assert_array_equal(video.timestamps, reference.timestamps)
        assert not file.closed
        assert numbers_of(load_video(file, num_frames=4).frames) == [12, 37, 62, 87]


def test_what_can_be_read_only_once_is_read_once_and_to_its_end(plain: Path) -> None:
    data = plain.read_bytes()
    pipes: list[Any] = [_Pipe(data, most=5_000) for _ in range(2)]  # as an unbuffered pipe: a part at a time
    video = load_video(pipes[0], num_frames=4, audio_rate=8_000)
    assert numbers_of(video.frames) == [12, 37, 62, 87]
    assert video.audio is not None and video.audio.duration == pytest.approx(4.0, abs=0.1)
    with pytest.raises(MediaLimitError, match="max_bytes"):
        load_video(pipes[1], num_frames=4, limits=MediaLimits(max_bytes=len(data) - 1))


@pytest.mark.parametrize("seekable", [True, False])
@pytest.mark.parametrize("timeout", [None, 240.0])
def test_text_is_never_taken_for_a_file(plain: Path, seekable: bool, timeout: float | None) -> None:
    text = io.StringIO(str(plain))
    text.seekable = lambda: seekable  # type: ignore[method-assign]
    with pytest.raises(MediaError, match="text file object; open it in binary mode"):
        load_video(text, num_frames=1, timeout=timeout)  # type: ignore[arg-type]


class _Pipe(io.RawIOBase):
    """Bytes that can be read once, like a socket, at `most` so many at a time."""

    def __init__(self, data: bytes, most: int = 1 << 30) -> None:
        self._data = io.BytesIO(data)
        self._most = most

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def readinto(self, buffer: Any) -> int:
        return self._data.readinto(memoryview(buffer)[: self._most])


def test_arrays_and_lists_of_frames() -> None:
    frames = np.stack([picture(i) for i in range(30)])
    for src in (frames, list(frames), [Image.fromarray(f) for f in frames]):
        video = load_video(src, fps=5, frame_fps=10)
        assert numbers_of(video.frames) == list(range(1, 30, 2))
        np.testing.assert_allclose(video.timestamps, np.arange(1, 30, 2) / 10)
        assert video.duration == 3.0 and video.info.backend == "frames"
    assert load_video(frames, num_frames=4, size=(32, 48)).frames.shape == (4, 32, 48, 3)
    assert numbers_of(load_video(frames, start=2, end=5).frames) == [2, 3, 4]


@pytest.mark.parametrize(
    "bad", [[], np.zeros((3, 4, 5)), np.zeros((2, 8, 8, 3), np.float32), [picture(0), "x"], 5, np.array(5), {"a": 1}]
)
def test_things_that_are_no_frames(bad: Any) -> None:
    with pytest.raises(MediaError):
        load_video(bad, num_frames=2)


def test_a_folder_of_images_in_natural_order(tmp_path: Path) -> None:
    for i in range(12):
        Image.fromarray(picture(i)).save(tmp_path / f"frame{i}.png")
    Image.fromarray(picture(12)).save(tmp_path / "frame12 (m²).png")
    Image.fromarray(picture(13)).save(tmp_path / "frame13²3.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    video = load_video(tmp_path, num_frames=14, frame_fps=2)
    assert numbers_of(video.frames) == list(range(14))
    np.testing.assert_allclose(video.timestamps, np.arange(14) / 2)


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_animations_keep_their_own_times(tmp_path: Path, kind: str) -> None:
    images = [Image.fromarray(picture(i)) for i in range(6)]
    durations = [100, 300, 50, 200, 100, 250]
    path = tmp_path / f"a.{kind}"
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, lossless=True)
    video = load_video(path)
    assert numbers_of(video.frames) == list(range(6))
    np.testing.assert_allclose(video.timestamps, np.cumsum([0, *durations[:-1]]) / 1000)
    assert video.duration == 1.0
    assert [number_of(f) for f in load_video(path, num_frames=4, sampling="endpoints").frames] == [0, 1, 4, 5]


@pytest.mark.parametrize("rate", [{"num_frames": 4}, {"fps": 2.0}])
def test_more_frames_than_are_asked_for_may_be_there(tmp_path: Path, rate: dict[str, Any]) -> None:
    images = [Image.fromarray(picture(i)) for i in range(20)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=100)
    assert len(load_video(tmp_path / "a.gif", limits=MediaLimits(max_frames=4), **rate)) == 4
    with pytest.raises(MediaLimitError, match=r"20 frames in it .* raise MediaLimits\.max_source_frames"):
        load_video([picture(0)] * 20, limits=MediaLimits(max_source_frames=19), **rate)


def enlarge_last_frame(folder: Path, width: int, height: int) -> bytes:
    """A GIF of three frames, the last of which claims another size."""
    images = [Image.fromarray(picture(i)) for i in range(3)]
    images[0].save(folder / "a.gif", save_all=True, append_images=images[1:], duration=100)
    data = bytearray((folder / "a.gif").read_bytes())
    place = data.rindex(b"\x2c\x00\x00\x00\x00") + 5
    data[place : place + 4] = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    return bytes(data)


def test_a_later_frame_may_not_blow_up_the_canvas(tmp_path: Path) -> None:
    with pytest.raises(MediaLimitError, match="max_pixels"):
        load_video(enlarge_last_frame(tmp_path, 20_000, 5_000))
    tracemalloc.start()
    with pytest.warns(TruncatedMediaWarning, match="damaged after frame 2"):
        video = load_video(enlarge_last_frame(tmp_path, 60_000, 60_000))  # Pillow refuses this one itself
    assert numbers_of(video.frames) == [0, 1]
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_exactly_one_of_num_frames_and_fps(plain: Path) -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        load_video(plain, num_frames=3, fps=1)
    assert len(load_video(plain, fps=5)) == 20
    assert len(load_video(plain)) == 100


@pytest.mark.parametrize(
    "wrong",
    [
        {"backend": "opencv"},
        {"snap": "near"},
        {"sampling": "random"},
        {"size": 0},
        {"size": (1, 2, 3)},
        {"start": -1},
        {"start": 3, "end": 2},
        {"num_frames": 0},
        {"num_frames": 4.0},
        {"num_frames": "4"},
        {"fps": "2"},
        {"size": 2.5},
        {"size": (4, 2.5)},
        {"fps": float("inf")},
        {"audio_rate": 0},
    ],
)
def test_wrong_arguments_name_themselves(plain: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        load_video(plain, **wrong)
    with pytest.raises(ConfigError):
        next(iter_video(plain, batch_frames=0))


def test_size_is_height_width_and_an_int_is_a_square(plain: Path) -> None:
    assert load_video(plain, num_frames=2, size=(40, 60)).frames.shape == (2, 40, 60, 3)
    assert load_video(plain, num_frames=2, size=50).frames.shape == (2, 50, 50, 3)
    assert load_video(plain, num_frames=2).frames.shape == (2, 64, 96, 3)


def test_scaling_is_close_to_a_good_resize_and_has_no_colour_bias(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", regular(3), options={"crf": "1"}, size=(256, 256))
    ours = load_video(path, num_frames=1, size=64).frames[0].astype(int)
    best = np.asarray(Image.fromarray(picture(1, 256, 256)).resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(ours - best).mean() < 1.5
    assert abs((ours - best).mean()) < 0.5


def test_requests_for_more_frames_than_there_are_repeat_frames_with_their_true_times(plain: Path) -> None:
    video = load_video(plain, num_frames=10, start=1.0, end=1.08)
    assert numbers_of(video.frames) == [25] * 5 + [26] * 5
    np.testing.assert_allclose(video.timestamps, [1.0] * 5 + [1.04] * 5)
    assert (video.start, video.end) == (1.0, 1.08)


def test_probe_tells_what_the_container_knows(plain: Path) -> None:
    info = probe(plain)
    assert (info.width, info.height, info.codec, info.rotation, info.has_audio) == (96, 64, "h264", 0, True)
    assert info.duration == pytest.approx(4.0, abs=0.05)
    assert info.fps == pytest.approx(25, rel=0.02) and info.num_frames == 100


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("size", [None, (48, 80)])
def test_rotation_is_applied(tmp_path: Path, degrees: int, size: tuple[int, int] | None) -> None:
    path = encode(tmp_path / "r.mp4", regular(5), rotation=degrees, options={"crf": "1"})
    video = load_video(path, num_frames=2, size=size)
    upright = np.rot90(picture(1), degrees // 90)
    assert video.info.rotation == degrees
    assert (video.info.height, video.info.width) == upright.shape[:2]
    assert video.frames.shape[1:3] == (size or upright.shape[:2])
    wanted = np.asarray(Image.fromarray(upright).resize(video.frames.shape[2:0:-1], Image.Resampling.BICUBIC))
    assert np.abs(video.frames[0].astype(int) - wanted).mean() < 8


def test_a_late_start_is_time_zero_and_reported(tmp_path: Path) -> None:
    video = load_video(encode(tmp_path / "a.mp4", [7000 + t for t in regular(20)]))
    assert video.timestamps[0] == 0 and video.info.start == pytest.approx(7.0)
    assert video.duration == pytest.approx(0.8, abs=0.05)
    stream = load_video(encode(tmp_path / "a.ts", regular(20), options={"bf": "2"}))
    assert stream.timestamps[0] == 0 and stream.info.start > 0


def test_pictures_that_start_after_the_sound_keep_their_offset(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", [1500 + t for t in regular(25)], sound=(16_000, 3.0))
    video = load_video(path, num_frames=5, audio_rate=16_000)
    assert video.info.start == pytest.approx(0, abs=0.01)
    assert video.timestamps[0] == pytest.approx(1.5, abs=0.01)  # nothing is shown before, so the first frame comes
    assert video.audio is not None and video.audio.start == pytest.approx(0, abs=0.01)
    assert numbers_of(load_video(path, num_frames=1, start=2.0, end=2.02).frames) == [12]


def test_an_edit_list_moves_and_cuts_the_presentation(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", regular(50), gop=50, options={"bf": "0"})
    data = bytearray(path.read_bytes())
    place = data.index(b"elst")
    assert int.from_bytes(data[place + 8 : place + 12], "big") == 1  # one edit; media time follows its duration
    scale_at = data.index(b"mdhd") + 16
    scale = int.from_bytes(data[scale_at : scale_at + 4], "big")
    data[place + 16 : place + 20] = scale.to_bytes(4, "big")  # the presentation starts one second into the media
    data[place + 12 : place + 16] = (1000).to_bytes(4, "big")
    video = load_video(bytes(data))
    assert numbers_of(video.frames) == list(range(25, 50))
    np.testing.assert_allclose(video.timestamps, np.arange(25) / 25, atol=1e-6)


def test_a_length_that_no_header_states_is_measured(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", regular(50), muxer={"live": "1"})
    video = load_video(path, num_frames=5)
    assert video.duration == pytest.approx(2.0, abs=0.05)
    assert numbers_of(video.frames) == [5, 15, 25, 35, 45]


def test_elementary_streams_have_frames_but_no_clock(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.h264", regular(30), container="h264", options={"bf": "0"})
    with pytest.raises(MediaError, match=r"no length, and its packets no times .* raw stream") as caught:
        load_video(path, num_frames=3)
    assert str(path) in str(caught.value)


def test_leaving_a_stream_early_closes_everything(plain: Path) -> None:
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(8):
        frames, _ = next(iter(iter_video(plain, num_frames=40, batch_frames=2)))
        assert len(frames) == 2
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert threading.active_count() <= threads


def test_many_videos_leak_no_files(plain: Path) -> None:
    load_video(plain, num_frames=2)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(15):
        load_video(plain, num_frames=4, size=16, audio_rate=8000)
    assert len(os.listdir("/proc/self/fd")) == before
