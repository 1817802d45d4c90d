"""The one place where (window, count or rate) becomes target times. All back ends share it."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Literal, get_args

import numpy as np

from vlm.errors import ConfigError, MediaError

Sampling = Literal["centres", "endpoints"]

_MANY = 1e15  # above any limit, and still a number that can be counted with
_EPSILON = 1e-6  # seconds; forgives rounding of times that were computed from frame rates


def sample_times(
    start: float,
    end: float,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    rule: Sampling = "centres",
) -> np.ndarray:
    """Target times of a request; the frame taken for each is the one being shown at that time.

    - ``centres``: [start, end) is cut into equal cells and the centre of each is taken. With `fps` the cells are
      1/fps wide (a last, partial cell counts if it is at least half a cell), so ``fps`` equal to the file's own
      constant rate gives every frame once.
    - ``endpoints``: evenly spaced including both ends, the rule of LITA (§3.2, uniform sampling).

    Args:
        start: Start of the window in seconds.
        end: End of the window in seconds, not before `start`.
        num_frames: How many times, or
        fps: how many per second. Exactly one of the two.
        rule: See above.

    Returns:
        float64 [T], ascending, in seconds.

    Raises:
        ConfigError: Both or neither of `num_frames` and `fps`, or a value out of range.
    """
    check_request(num_frames=num_frames, fps=fps, rule=rule)
    length = end - start
    if length < 0:
        raise ConfigError(f"the window ends ({end:g} s) before it starts ({start:g} s)")
    if num_frames is not None:
        if rule == "endpoints":
            return np.linspace(start, end, num_frames, dtype=np.float64)
        return start + (np.arange(num_frames, dtype=np.float64) + 0.5) * (length / num_frames)
    if fps is None:
        raise ConfigError("give num_frames or fps")
    numbers = np.arange(count_times(start, end, num_frames=None, fps=fps, rule=rule), dtype=np.float64)
    if rule == "endpoints":
        return start + numbers / fps
    return np.minimum(start + (numbers + 0.5) / fps, end)


def check_request(*, num_frames: int | None, fps: float | None, rule: str = "centres") -> None:
    """Refuse a sampling request that makes no sense, before any file is opened.

    Raises:
        ConfigError: Names the argument and the value.
    """
    if num_frames is not None and fps is not None:
        raise ConfigError(f"num_frames={num_frames} and fps={fps} exclude each other; give one of them")
    if num_frames is not None and not (isinstance(num_frames, Integral) and num_frames >= 1):
        raise ConfigError(f"num_frames must be a whole number of at least 1, not {num_frames!r}")
    if fps is not None and not (isinstance(fps, Real) and math.isfinite(fps) and fps > 0):
        raise ConfigError(f"fps must be a positive number, not {fps!r}")
    if rule not in get_args(Sampling):
        raise ConfigError(f"sampling must be one of {', '.join(get_args(Sampling))}, not {rule!r}")


def count_times(start: float, end: float, *, num_frames: int | None, fps: float | None, rule: Sampling) -> int:
    """How many times `sample_times` returns, without building them; 0 for neither a number nor a rate."""
    if num_frames is not None:
        return num_frames
    if fps is None:
        return 0
    cells = min((end - start) * fps, _MANY) + _EPSILON
    return math.floor(cells) + 1 if rule == "endpoints" else max(1, math.floor(cells + 0.5))


def resolve_window(source: str, duration: float, start: float | None, end: float | None) -> tuple[float, float]:
    """Clip a requested window to the video.

    Args:
        source: Name for messages.
        duration: Length of the video in seconds.
        start: Wanted start in seconds, None for the beginning.
        end: Wanted end in seconds, None for the end.

    Raises:
        ConfigError: The window itself is impossible (negative, empty or not a number).
        MediaError: The video ends before the window starts.
    """
    first = 0.0 if start is None else float(start)
    last = duration if end is None else float(end)
    if math.isnan(first) or math.isnan(last) or first < 0:
        raise ConfigError(f"start={start} and end={end} must be seconds, start not negative")
    if start is not None and end is not None and last <= first:
        raise ConfigError(f"end={end} must be larger than start={start}")
    if first > 0 and first >= duration:
        raise MediaError(source, f"ends at {duration:.3f} s, before the requested start of {first:g} s")
    if end is not None and last <= first:
        raise ConfigError(f"end={end} must be larger than start={first:g}")
    return first, min(last, duration)
