"""torchcodec and decord return the frames and times of the default reader; what is absent is named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.vlm.media.clips import encode, numbers_of, regular
from vlm.errors import ConfigError, MediaError, MissingDependencyError
from vlm.media import iter_video, load_video

WIDE = (64, 192)  # decord2 3.4 cannot decode some widths, 96 among them, on CPUs with AVX-512

KINDS: dict[str, Callable[[Path], Path]] = {
    "bframes": lambda d: encode(d / "a.mp4", regular(60), options={"bf": "2"}, size=WIDE),
    "vfr": lambda d: encode(d / "a.mp4", [40 * i + 200 * (i // 7) for i in range(60)], options={"bf": "2"}, size=WIDE),
    "late": lambda d: encode(d / "a.mp4", [3000 + 40 * i for i in range(60)], options={"bf": "2"}, size=WIDE),
    "rotated": lambda d: encode(d / "a.mp4", regular(40), rotation=90, size=WIDE),
    "webm": lambda d: encode(
        d / "a.webm", regular(40), codec="libvpx-vp9", options={"deadline": "realtime"}, size=WIDE
    ),
    "long-gop": lambda d: encode(d / "a.mkv", regular(60), gop=250, options={"bf": "2"}, size=WIDE),
}


@pytest.fixture(params=["torchcodec", "decord"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The back end, or a skip with the reason."""
    path = encode(tmp_path / "probe.mp4", regular(2), size=WIDE)
    try:
        load_video(path, num_frames=1, backend=request.param)
    except MissingDependencyError as error:
        pytest.skip(f"{request.param} cannot be used here: {error.__cause__}".splitlines()[0][:200])
    return request.param


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_same_request_gives_the_same_frames(backend: str, kind: str, tmp_path: Path) -> None:
    path = KINDS[kind](tmp_path)
    requests: list[dict[str, Any]] = [
        {"num_frames": 7},
        {"fps": 5, "start": 0.4, "end": 1.3},
        {"num_frames": 5, "sampling": "endpoints"},
        {},
        {"start": 0.5, "end": 1.0},
        {"num_frames": 3, "size": (48, 32)},
    ]
    for request in requests:
        ours, theirs = load_video(path, **request), load_video(path, backend=backend, **request)  # type: ignore[arg-type]
        assert theirs.info.backend == backend
        assert ours.frames.shape == theirs.frames.shape
        np.testing.assert_allclose(theirs.timestamps, ours.timestamps, atol=1e-6)
        difference = np.abs(ours.frames.astype(int) - theirs.frames)
        assert difference.mean() < 1.5 and np.percentile(difference, 99) <= 24


def test_bytes_and_streaming(backend: str, tmp_path: Path) -> None:
    data = encode(tmp_path / "a.mp4", regular(100), options={"bf": "2"}, size=WIDE).read_bytes()
    whole = load_video(data, num_frames=20, backend=backend)  # type: ignore[arg-type]
    assert numbers_of(whole.frames) == list(range(2, 100, 5))
    parts = list(iter_video(data, num_frames=20, backend=backend, batch_frames=8))  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.concatenate([frames for frames, _ in parts]), whole.frames)


def test_their_limits_are_reported(backend: str, plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keyframe"):
        load_video(plain, num_frames=2, backend=backend, snap="keyframe")  # type: ignore[arg-type]
    (tmp_path / "a.mp4").write_bytes(b"nothing of the kind" * 99)
    with pytest.raises(MediaError, match=r"a\.mp4"):
        load_video(tmp_path / "a.mp4", num_frames=2, backend=backend)  # type: ignore[arg-type]


def test_damage_that_they_stumble_over_is_reported(backend: str, tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", regular(60), options={"crf": "5"}, muxer={"movflags": "faststart"}, size=WIDE)
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 * 2] = bytes(len(data) // 3)
    with pytest.raises(MediaError, match=f"{backend} cannot decode it"):
        load_video(bytes(data), backend=backend, num_frames=60)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["torchcodec", "decord"])
def test_a_missing_package_names_the_extra(name: str, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{name}.decoders", None)
    with pytest.raises(MissingDependencyError, match=rf"'{name}'.*vlm\[codec\]"):
        load_video(plain, num_frames=1, backend=name)  # type: ignore[arg-type]


def test_fine_clocks_agree(backend: str, tmp_path: Path) -> None:
    path = encode(
        tmp_path / "a.mp4", [3003 * i for i in range(50)], base=Fraction(1, 90_000), options={"bf": "2"}, size=WIDE
    )
    theirs = load_video(path, fps=30_000 / 1001, backend=backend)  # type: ignore[arg-type]
    assert numbers_of(theirs.frames) == list(range(50))
    np.testing.assert_allclose(theirs.timestamps, np.arange(50) * 1001 / 30_000, atol=1e-6)
