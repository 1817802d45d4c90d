"""`plan_video`: the times are those of `load_video` without a decoded frame, and a part of the frames costs a part of the decoding."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.vlm.media.clips import count_decoded, cut, encode, numbers_of, picture, regular
from tests.vlm.media.test_exact import KINDS
from vlm.errors import MediaError, MediaWarning
from vlm.media import load_video, plan_video


@pytest.fixture(scope="module", params=list(KINDS))
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each kind."""
    return KINDS[request.param](tmp_path_factory.mktemp("plan"))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each frame that any cursor decodes."""
    return count_decoded(monkeypatch)


@pytest.mark.parametrize("options", [{"num_frames": 7}, {"num_frames": 150}, {"fps": 5.0, "start": 0.31, "end": 1.4}])
def test_a_plan_is_what_loading_gives(path: Path, options: dict[str, Any], decoded: list[int]) -> None:
    whole = load_video(path, size=32, **options)
    decoded.clear()
    plan = plan_video(path, size=32, **options)
    if path.suffix == ".avi":  # only decoding tells when its frames are shown
        assert plan is None
        return
    assert plan is not None and len(decoded) <= 3  # the first frame is looked at, and comes with those after it
    np.testing.assert_array_equal(plan.timestamps, whole.timestamps)
    assert (plan.start, plan.end) == (whole.start, whole.end) and len(plan) == len(whole.frames)
    third = len(plan) // 3
    for rows in (slice(0, third), slice(third, 2 * third), slice(2 * third, None), slice(2, 2)):
        np.testing.assert_array_equal(plan[rows], whole.frames[rows])


def test_a_part_of_the_frames_costs_a_part_of_the_decoding(tmp_path: Path, decoded: list[int]) -> None:
    plan = plan_video(encode(tmp_path / "a.mp4", regular(240), gop=12), num_frames=240)
    assert plan is not None
    decoded.clear()
    assert numbers_of(plan[60:120]) == list(range(60, 120))
    assert len(decoded) < 240 / 2


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_a_file_that_is_cut_off_cannot_be_planned(tmp_path: Path, kind: str) -> None:
    whole = encode(tmp_path / f"a.{kind}", regular(100), muxer={"movflags": "faststart"} if kind == "mp4" else None)
    broken = cut(whole, tmp_path / f"b.{kind}", 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert plan_video(broken, num_frames=20) is None
        assert 5 < len(load_video(broken, num_frames=20).frames) < 15


def test_where_nothing_can_be_decoded_the_picture_stands_still(tmp_path: Path) -> None:
    data = bytearray(encode(tmp_path / "a.mkv", regular(100), gop=5).read_bytes())
    plan = plan_video(bytes(data), num_frames=20)
    assert plan is not None
    whole = plan[:]
    data[len(data) // 2 : len(data) * 3 // 4] = bytes(len(data) // 4)
    (tmp_path / "b.mkv").write_bytes(data)
    damaged = plan_video(tmp_path / "a.mkv", num_frames=20)
    assert damaged is not None
    (tmp_path / "a.mkv").write_bytes(data)  # damaged after it was planned, or where no packet shows it
    with pytest.warns(MediaWarning, match="the picture stands still"):
        found = damaged[:]
    assert found.shape == whole.shape
    np.testing.assert_array_equal(found[:8], whole[:8])
    (tmp_path / "a.mkv").write_bytes(b"gone")
    with pytest.warns(MediaWarning, match="20 frames cannot be decoded"):
        assert (damaged[:] == 128).all()


def test_frames_that_are_there_one_by_one_are_planned_too(tmp_path: Path) -> None:
    frames = np.stack([picture(i) for i in range(30)])
    plan = plan_video(frames, fps=5, frame_fps=10)
    assert plan is not None
    assert numbers_of(plan[3:6]) == [7, 9, 11]
    with pytest.raises(MediaError, match="No such file"):
        plan_video(tmp_path / "missing.mp4", num_frames=2)
