"""What a browser may send: controls in and out of range, files of every kind."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vlm.media
from demo.intake import DECODE_TIMEOUT, MAX_FRAMES, MAX_IMAGES, Look, check_settings, kind_of, read_files
from tests.tiny import tiny_assistant
from vlm.errors import ConfigError, MediaError
from vlm.processor import VLMProcessor

GOOD: dict[str, Any] = {
    "sampling": "frames",
    "frames": 8,
    "fps": 1.0,
    "start": "",
    "end": "",
    "max_new_tokens": 16,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def processor() -> VLMProcessor:
    return tiny_assistant().processor


def test_good_settings() -> None:
    assert check_settings(**GOOD).look == Look(num_frames=8)
    timed = check_settings(**{**GOOD, "sampling": "fps", "fps": 2, "start": "1:15", "end": "1:02:03.5"})
    assert timed.look == Look(fps=2.0, start=75.0, end=3723.5)
    assert check_settings(**{**GOOD, "start": None, "end": " 12.5 "}).look == Look(num_frames=8, end=12.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sampling", "all"),
        ("sampling", None),
        ("frames", 0),
        ("frames", MAX_FRAMES + 1),
        ("frames", 10**9),
        ("frames", None),
        ("frames", "8"),
        ("frames", True),
        ("frames", math.nan),
        ("start", "-1"),
        ("start", "soon"),
        ("start", "1:2:3:4"),
        ("start", "9" * 50),
        ("start", "1e3"),
        ("start", "٣"),
        ("end", "0"),
        ("max_new_tokens", 10**6),
        ("max_new_tokens", math.inf),
        ("temperature", -0.1),
        ("temperature", [1]),
        ("fps", 0),
        ("fps", 1000),
    ],
)
def test_bad_settings_are_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError):
        check_settings(**{**GOOD, "sampling": "fps" if name == "fps" else "frames", name: value})


def test_a_window_that_ends_before_it_begins() -> None:
    with pytest.raises(ConfigError, match="swap"):
        check_settings(**{**GOOD, "start": "5", "end": "3"})


def test_kinds_come_from_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mimetypes.guess_type", lambda *_, **__: (None, None))  # as where the system has no table
    kinds = {n: kind_of(Path(n)) for n in ("a.mp4", "b.MKV", "c.webm", "d.gif", "e.png", "f.JPG", "g.wav", "h.mp3")}
    assert list(kinds.values()) == ["video"] * 4 + ["image"] * 2 + ["audio"] * 2
    assert {kind_of(Path("a" + s)) for s in (".m4v", ".ts", ".MTS", ".m2ts", ".3gp", ".ogv", ".wmv", ".flv")} == {
        "video"
    }
    assert {kind_of(Path("a" + s)) for s in (".m4a", ".ogg", ".flac", ".opus")} == {"audio"}
    assert kind_of(Path("a.webp")) == "image"
    for name in ("a.txt", "a", "a.html", "a.mp4.exe"):
        with pytest.raises(MediaError, match="is not a video, a picture or a sound"):
            kind_of(Path(name))


def test_a_clip_is_read_at_the_size_of_the_tower(processor: VLMProcessor, clip: Path) -> None:
    media = read_files([clip], Look(num_frames=4, start=0.5, end=1.5), processor)
    video: Any = media.options["video"]
    assert media.video is media.options["video"]
    assert video.frames.shape == (4, 32, 32, 3)
    assert (video.start, video.end) == (0.5, 1.5)
    np.testing.assert_allclose(video.timestamps, [0.6, 0.8, 1.1, 1.3], atol=0.11)
    assert media.notes == []


def test_pictures_come_as_a_list_and_not_without_limit(processor: VLMProcessor, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(MAX_IMAGES + 1)]
    for path in paths:
        Image.new("RGB", (20, 10), "red").save(path)
    assert len(read_files(paths[:2], Look(), processor).options["image"]) == 2
    with pytest.raises(ConfigError, match="at most 8 image"):
        read_files(paths, Look(), processor)


def test_every_kind_is_decoded_in_a_child_process_at_the_size_of_the_tower(
    processor: VLMProcessor, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, float]] = []

    def run_isolated(loader: str, src: Any, *, timeout: float, **request: Any) -> Any:
        asked.append((loader, timeout))
        return getattr(vlm.media, loader)(src, **request)

    monkeypatch.setattr("vlm.media.isolate.run_isolated", run_isolated)
    monkeypatch.setattr(processor, "ears", {"rate": 16_000})
    Image.new("RGB", (600, 500), "red").save(tmp_path / "a.png")
    media = read_files([clip, tmp_path / "a.png"], Look(num_frames=2), processor)
    sound = read_files([clip.rename(tmp_path / "a.m4a")], Look(), processor)
    (tmp_path / "a.m4a").rename(clip)
    assert asked == [(loader, DECODE_TIMEOUT) for loader in ("load_video", "load_image", "load_audio")]
    assert media.options["image"][0].shape == (32, 32, 3) and sound.options["audio"].rate == 16_000


def test_two_clips_or_a_sound_for_deaf_ears(processor: VLMProcessor, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most 1 video"):
        read_files([clip, clip], Look(num_frames=2), processor)
    with pytest.raises(MediaError, match="cannot be heard"):
        read_files([tmp_path / "a.wav"], Look(), processor)


def test_errors_name_the_file_and_not_its_folder(processor: VLMProcessor, broken: Path, tmp_path: Path) -> None:
    picture = tmp_path / "bad.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\nno more")
    for path in (broken, picture, tmp_path / "missing.mp4"):
        with pytest.raises(MediaError) as caught:
            read_files([path], Look(num_frames=2), processor)
        assert caught.value.source == path.name
        assert str(tmp_path) not in str(caught.value)


def test_limits_are_told_in_terms_of_the_page(processor: VLMProcessor, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError) as caught:
        read_files([clip], Look(fps=1000.0), processor)
    assert str(caught.value) == (
        "clip.mp4: 2,000 frames exceed the limit of 256; choose fewer frames, or a shorter part of the clip with From and To"
    )
    images = [Image.new("RGB", (20, 10), (i % 256, i // 2, 0)) for i in range(MAX_FRAMES + 4)]
    images[0].save(tmp_path / "long.gif", save_all=True, append_images=images[1:], duration=100)
    assert len(read_files([tmp_path / "long.gif"], Look(num_frames=4), processor).options["video"]) == 4


def test_a_truncated_clip_is_used_with_a_note(processor: VLMProcessor, tmp_path: Path) -> None:
    from vlm.media import write_video

    frames = np.random.default_rng(0).integers(0, 256, (40, 64, 96, 3), dtype=np.uint8)
    path = write_video(tmp_path / "cut.mp4", frames, fps=10.0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    media = read_files([path], Look(num_frames=8), processor)
    assert media.video is not None and len(media.video) >= 1
    assert media.notes and all(str(tmp_path) not in note for note in media.notes)
