"""The sampling rules, and the window."""

from __future__ import annotations

import numpy as np
import pytest

from vlm.errors import ConfigError, MediaError
from vlm.media import sample_times
from vlm.media.sampling import count_times, resolve_window


def test_centres_are_the_middles_of_equal_cells() -> None:
    np.testing.assert_allclose(sample_times(2.0, 10.0, num_frames=4), [3, 5, 7, 9])


def test_endpoints_include_both_ends() -> None:
    np.testing.assert_allclose(sample_times(0.0, 9.0, num_frames=4, rule="endpoints"), [0, 3, 6, 9])
    np.testing.assert_allclose(sample_times(1.0, 9.0, num_frames=1, rule="endpoints"), [1])


@pytest.mark.parametrize("fps", [1, 7.5, 24, 25, 30_000 / 1001, 60])
@pytest.mark.parametrize("frames", [1, 2, 299, 1001])
def test_the_rate_of_the_file_gives_every_frame_once(fps: float, frames: int) -> None:
    times = sample_times(0.0, frames / fps, fps=fps)
    np.testing.assert_array_equal(np.floor(times * fps).astype(int), np.arange(frames))


def test_rates_keep_their_spacing() -> None:
    np.testing.assert_allclose(sample_times(0.0, 10.4, fps=1), np.arange(10) + 0.5)
    np.testing.assert_allclose(sample_times(5.0, 7.0, fps=2, rule="endpoints"), [5, 5.5, 6, 6.5, 7])
    assert len(sample_times(0.0, 0.01, fps=1)) == 1


@pytest.mark.parametrize("request_", [{}, {"num_frames": 3, "fps": 1.0}, {"num_frames": 0}, {"fps": -1.0}])
def test_senseless_requests_are_refused(request_: dict) -> None:
    with pytest.raises(ConfigError):
        sample_times(0.0, 1.0, **request_)
    with pytest.raises(ConfigError, match="centers"):
        sample_times(0.0, 1.0, num_frames=1, rule="centers")  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["centres", "endpoints"])
@pytest.mark.parametrize("fps", [0.1, 1.0, 29.97, 1000.0])
def test_the_times_are_counted_without_building_them(rule: str, fps: float) -> None:
    for end in (0.0, 0.3, 1.0, 17.77):
        times = sample_times(0.0, end, fps=fps, rule=rule)  # type: ignore[arg-type]
        assert len(times) == count_times(0.0, end, num_frames=None, fps=fps, rule=rule)  # type: ignore[arg-type]
        assert times.min() >= 0 and times.max() <= end


def test_windows() -> None:
    assert resolve_window("v", 10.0, None, None) == (0.0, 10.0)
    assert resolve_window("v", 10.0, 2, 99) == (2.0, 10.0)
    for start, end in [(-1, None), (5, 5), (5, 4), (float("nan"), None), (None, 0)]:
        with pytest.raises(ConfigError):
            resolve_window("v", 10.0, start, end)
    with pytest.raises(MediaError, match=r"v: ends at 10\.000 s"):
        resolve_window("v", 10.0, 10.0, None)
