"""Broken, odd and hostile files: each row is one case and its exact outcome."""

from __future__ import annotations

import os
import struct
import time
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.vlm.media.clips import HEIGHT, WIDTH, cut, encode, numbers_of, picture, regular
from vlm.errors import MediaError, MediaLimitError, TruncatedMediaWarning
from vlm.media import MediaLimits, iter_video, load_video, probe


def refuse(src: object, match: str, error: type[MediaError] = MediaError, **request: object) -> None:
    """The request ends in a `MediaError` that names file and cause, quickly."""
    began = time.process_time()
    with pytest.raises(error, match=match) as caught:
        load_video(src, num_frames=4, **request)  # type: ignore[arg-type]
    assert time.process_time() - began < 5
    if isinstance(src, Path):
        assert str(src) in str(caught.value)


def test_truncated_with_the_index_at_the_end(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", regular(50))
    refuse(cut(path, tmp_path / "b.mp4", 0.7), r"cut off before its index \(moov\)")


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts", "avi", "fragmented"])
def test_truncated_gives_the_frames_before_the_cut(tmp_path: Path, kind: str, keep: float) -> None:
    muxer = {"mp4": {"movflags": "faststart"}, "fragmented": {"movflags": "frag_keyframe+empty_moov"}}.get(kind, {})
    options = {"bf": "0" if kind == "avi" else "2", "crf": "5"}
    base = Fraction(1, 25 if kind == "avi" else 1000)
    name, times = FORMATS.get(kind, kind), regular(120, base=base)
    whole = encode(tmp_path / f"a.{kind}", times, base=base, options=options, muxer=muxer, container=name)
    path = cut(whole, tmp_path / f"b.{kind}", keep)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sampled = load_video(path, num_frames=40)
        every = load_video(path)
    numbers = numbers_of(every.frames)[:-2]  # at the cut itself, frames may be damaged or lack their B-frames
    assert numbers == list(range(len(numbers)))
    assert 120 * keep * 0.6 < len(numbers) < 120 * min(1, keep * 1.4)
    np.testing.assert_allclose(every.timestamps[:-2], np.arange(len(numbers)) / 25, atol=1e-3)
    sound = sampled.timestamps < every.timestamps[-2] - 1e-3
    assert numbers_of(sampled.frames[sound]) == np.round(sampled.timestamps[sound] * 25).astype(int).tolist()
    assert sound.sum() > 40 * keep * 0.5 and sampled.timestamps.max() <= every.timestamps.max()
    if kind == "mp4" or (kind in ("mkv", "avi") and keep < 0.9):  # the others do not say how long they were
        assert len(sampled) < 40
        assert any(isinstance(w.message, TruncatedMediaWarning) and str(path) in str(w.message) for w in caught)


FORMATS = {"fragmented": "mp4", "mkv": "matroska", "ts": "mpegts"}


def test_a_window_behind_the_cut(tmp_path: Path) -> None:
    whole = encode(tmp_path / "a.mp4", regular(200), muxer={"movflags": "faststart"})
    refuse(cut(whole, tmp_path / "b.mp4", 0.4), "cut off", start=7.0)


def test_sound_only(tmp_path: Path) -> None:
    import av

    path = tmp_path / "a.m4a"
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        file.mux([*stream.encode(frame), *stream.encode(None)])
    refuse(path, r"no video stream \(streams: audio\)")


def test_empty_and_absent(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    refuse(tmp_path / "empty.mp4", "empty")
    refuse(b"", "empty")
    refuse(tmp_path / "absent.mp4", "No such file")
    refuse(tmp_path, "folder without images")
    refuse("https://example.org/a.mp4", "URLs are not opened")
    refuse("a\0b.mp4", "cannot be read")


def test_one_small_frame(tmp_path: Path) -> None:
    video = load_video(encode(tmp_path / "a.mp4", [0], size=(16, 16)), num_frames=3)
    assert video.frames.shape == (3, 16, 16, 3) and set(video.timestamps) == {0.0}
    assert len(load_video(tmp_path / "a.mp4")) == 1


def test_a_bomb_of_8192_pixels_is_refused_before_decoding(tmp_path: Path) -> None:
    import av

    path = tmp_path / "bomb.mp4"
    black = av.VideoFrame.from_ndarray(np.zeros((8192 * 3 // 2, 8192), np.uint8), format="yuv420p")
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("libx264", rate=1, options={"preset": "ultrafast"})
        stream.width = stream.height = 8192
        file.mux([*stream.encode(black), *stream.encode(None)])
    assert path.stat().st_size < 200_000
    refuse(path, r"67,108,864 pixels \(8192 × 8192\) exceed the limit of 50,000,000", MediaLimitError)


def test_a_header_that_lies_about_the_size_is_caught_while_decoding(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", regular(5), size=(256, 256), muxer={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    place = data.index(b"avc1", data.index(b"stsd")) + 28
    assert struct.unpack(">HH", data[place : place + 4]) == (256, 256)
    data[place : place + 4] = struct.pack(">HH", 64, 64)
    with pytest.raises(MediaError):
        load_video(bytes(data), num_frames=2, limits=MediaLimits(max_pixels=64 * 64))


def lie_about_duration(path: Path, milliseconds: float) -> bytes:
    """Overwrite Matroska's Duration."""
    data = bytearray(path.read_bytes()).replace(b"DURATION", b"DURATIOX")
    place = data.index(b"\x44\x89\x88") + 3
    data[place : place + 8] = struct.pack(">d", milliseconds)
    return bytes(data)


@pytest.mark.parametrize("milliseconds", [1e9, 1e15])
def test_an_absurd_duration_is_refused(tmp_path: Path, milliseconds: float) -> None:
    path = encode(tmp_path / "a.mkv", regular(50))
    refuse(lie_about_duration(path, milliseconds), "seconds exceed the limit of 86,400", MediaLimitError)


@pytest.mark.parametrize("milliseconds", [9e18, float("inf"), float("nan"), -5.0, 0.0])
def test_a_duration_that_is_none_is_measured(tmp_path: Path, milliseconds: float) -> None:
    video = load_video(lie_about_duration(encode(tmp_path / "a.mkv", regular(50)), milliseconds), num_frames=5)
    assert video.duration == pytest.approx(2.0, abs=0.05)
    assert numbers_of(video.frames) == [5, 15, 25, 35, 45]


def test_a_duration_that_lies_ends_in_the_frames_there_are(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", regular(50))
    with pytest.warns(TruncatedMediaWarning, match=r"cut off at 2\.\d+ s of 100\.000 s"):
        video = load_video(lie_about_duration(path, 100_000.0), num_frames=100)
    assert 2 <= len(video) <= 4 and video.timestamps.max() < 2


def test_the_name_does_not_matter_the_contents_do(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", regular(10)).rename(tmp_path / "a.txt")
    assert len(load_video(path)) == 10
    path.rename(tmp_path / "ä ö;&|'.avi")
    assert len(load_video(tmp_path / "ä ö;&|'.avi")) == 10


@pytest.mark.parametrize(
    "content",
    [
        b"hello, this is no video\n" * 50,
        bytes(5000),
        np.random.default_rng(0).bytes(5000),
        b"%PDF-1.7\n" + b"x" * 500,
        b"PK\3\4" + b"z" * 99,
        b"x",
        b"\xff",
        b"<html></html>",
        b"RIFF\xff\xff\xff\xffAVI LIST",
        b"\x1aE\xdf\xa3" + b"\xff" * 200,
        b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        b"\0\0\0\x01ftyp" + b"\xff" * 8 + b"mp42" * 9,
    ],
)
def test_things_that_are_no_media(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    refuse(path, ".")
    refuse(content, ".")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp", "tiff"])
def test_still_images_are_not_videos(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.mp4"
    Image.new("RGB", (20, 20)).save(path, format=kind)
    refuse(path, "is a still image .* use load_image")


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:{0}\n",
        "ffconcat version 1.0\nfile '{0}'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
        "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><Period/></MPD>",
        "\n \n#EXTM3U\n{0}\n",
    ],
)
def test_playlists_are_never_followed(tmp_path: Path, plain: Path, text: str) -> None:
    path = tmp_path / "a.m3u8"
    path.write_text(text.format(plain))
    refuse(path, "never followed")
    refuse(text.format(plain).encode(), "never followed")
    hidden = tmp_path / "b.mp4"  # not recognised by its first bytes: the format whitelist has to hold
    hidden.write_text(f"# a comment\n{text.format(plain)}")
    refuse(hidden, ".")
    refuse(f"concat:{plain}|{plain}", "No such file")


def test_special_files_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    refuse(tmp_path / "pipe.mp4", "not a regular file")
    refuse(Path("/dev/zero"), "not a regular file")


def test_every_limit_is_checked_and_named(plain: Path) -> None:
    for limits, request in [
        (MediaLimits(max_bytes=1000), {}),
        (MediaLimits(max_pixels=WIDTH * HEIGHT - 1), {}),
        (MediaLimits(max_pixels=WIDTH * HEIGHT), {"size": 512}),
        (MediaLimits(max_seconds=3.9), {}),
        (MediaLimits(max_frames=3), {}),
        (MediaLimits(max_decoded_bytes=4 * WIDTH * HEIGHT * 3 - 1), {}),
        (MediaLimits(max_wall_seconds=1e-9), {}),
    ]:
        name = next(k for k, v in vars(limits).items() if v != getattr(MediaLimits(), k))
        for src in (plain, plain.read_bytes()):
            refuse(src, f"raise MediaLimits.{name}", MediaLimitError, limits=limits, **request)


@pytest.mark.parametrize("kind", ["mp4", "folder", "gif", "frames"])
def test_the_time_limit_counts_our_time_and_not_the_caller_s(tmp_path: Path, plain: Path, kind: str) -> None:
    pictures = [Image.fromarray(picture(i)) for i in range(12)]
    (tmp_path / "folder").mkdir()
    for number, image in enumerate(pictures):
        image.save(tmp_path / "folder" / f"{number}.png")
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=100)
    sources = {"mp4": plain, "folder": tmp_path / "folder", "gif": tmp_path / "a.gif", "frames": pictures}
    src: Any = sources[kind]
    with pytest.raises(MediaLimitError, match="max_wall_seconds"):
        load_video(src, num_frames=12, limits=MediaLimits(max_wall_seconds=1e-9))
    began = time.monotonic()
    load_video(src, num_frames=12)
    limit = 8 * (time.monotonic() - began) + 0.2
    seen = 0
    for frames, _ in iter_video(src, num_frames=12, batch_frames=4, limits=MediaLimits(max_wall_seconds=limit)):
        time.sleep(limit / 2)
        seen += len(frames)
    assert seen == 12


def test_limits_hold_for_whole_windows_and_rates_before_anything_is_built(plain: Path) -> None:
    for fps in (1e12, 1e308):
        with pytest.raises(MediaLimitError, match="max_frames"):
            load_video(plain, fps=fps)
    with pytest.raises(MediaLimitError, match="max_frames"):
        load_video(plain, num_frames=10**15)
    with pytest.raises(MediaLimitError, match="max_frames"):
        load_video(plain, limits=MediaLimits(max_frames=50))
    with pytest.raises(MediaLimitError, match="max_decoded_bytes"):
        load_video(plain, limits=MediaLimits(max_decoded_bytes=50 * WIDTH * HEIGHT * 3))
    streamed = iter_video(plain, limits=MediaLimits(max_decoded_bytes=10 * WIDTH * HEIGHT * 3), batch_frames=10)
    assert sum(len(frames) for frames, _ in streamed) == 100


def test_damage_in_the_middle_loses_only_the_middle(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", regular(200), options={"crf": "5", "bf": "2"}, muxer={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        numbers = numbers_of(load_video(bytes(data)).frames)
    assert numbers[:60] == list(range(60)) and numbers[-60:] == list(range(140, 200))


def test_negative_and_zero_rates(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", [0, 1, 2, 5000], options={"bf": "0"})
    assert numbers_of(load_video(path, num_frames=4).frames) == [2, 2, 2, 3]
    assert probe(path).duration == pytest.approx(5, abs=1.7)
