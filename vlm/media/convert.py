"""Decoded frame -> RGB array of the wanted size: one pass through swscale, then the rotation the container asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vlm.errors import ConfigError, MediaError
from vlm.media.limits import MediaLimits

if TYPE_CHECKING:
    from av import VideoFrame

_FULL_RANGE = 2  # AVCOL_RANGE_JPEG
_BICUBIC = 4  # SWS_BICUBIC
# SWS_FULL_CHR_H_INT | SWS_ACCURATE_RND: without them scaled colours are darker by about 1.5 of 255, at the same cost.
_EXACT_COLOUR = 0x2000 | 0x40000


def resolve_size(size: tuple[int, int] | int | None) -> tuple[int, int] | None:
    """`size` as (height, width): an int is a square (a plain resize, the aspect ratio is not kept), None is the file's.

    Raises:
        ConfigError: Not one or two positive ints.
    """
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, Sequence | np.ndarray) else (size, size)
    if len(pair) != 2 or any(not isinstance(x, int | np.integer) or x < 1 for x in pair):
        raise ConfigError(f"size must be a positive int or (height, width), not {size!r}")
    return int(pair[0]), int(pair[1])


class Scaler:
    """Turns frames into uint8 [H, W, 3]. Not thread-safe: it keeps one swscale context for speed.

    Args:
        source: Name for error messages.
        size: (height, width) of the result, or None for the size of the first frame as shown; later frames of another
            size are scaled to it.
        limits: Checked for every frame, because a stream may change its size on the way.
    """

    def __init__(self, source: str, size: tuple[int, int] | None, limits: MediaLimits) -> None:
        from av.video.reformatter import VideoReformatter

        self.size = size
        self._source = source
        self._limits = limits
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        """Scale, convert and rotate one frame -> uint8 [H, W, 3]."""
        self._limits.check_pixels(self._source, frame.width, frame.height)
        turns = quarter_turns(frame)
        shown = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
        self.size = self.size or shown
        height, width = self.size[::-1] if turns % 2 else self.size
        rgb = self._to_rgb(frame, height, width)
        return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb

    def _to_rgb(self, frame: VideoFrame, height: int, width: int) -> np.ndarray:
        from av import FFmpegError

        alpha = any(component.is_alpha for component in frame.format.components)
        scaled = (frame.height, frame.width) != (height, width)
        try:
            out = self._reformatter.reformat(
                frame,
                width,
                height,
                format="rgba" if alpha else "rgb24",
                interpolation=_BICUBIC | _EXACT_COLOUR if scaled else _BICUBIC,
                src_color_range=_FULL_RANGE if frame.color_range == _FULL_RANGE else None,
            )
            array = out.to_ndarray()
        except (FFmpegError, ValueError, MemoryError) as error:
            raise MediaError(self._source, f"a {frame.format.name} frame cannot be converted: {error}") from error
        return on_white(array) if alpha else array


def quarter_turns(frame: VideoFrame) -> int:
    """Counter-clockwise quarter turns (0 to 3) that bring a frame upright, from its display matrix."""
    return round(frame.rotation / 90) % 4


def on_white(rgba: np.ndarray) -> np.ndarray:
    """Composite uint8 [H, W, 4] on white -> uint8 [H, W, 3]."""
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def resize(frame: np.ndarray, scaler: Scaler) -> np.ndarray:
    """Bring an RGB array uint8 [H, W, 3] to the scaler's size, with the same filter as decoded frames."""
    if scaler.size is None:
        scaler.size = frame.shape[0], frame.shape[1]
    if frame.shape[:2] == scaler.size:
        return frame
    from av import VideoFrame

    return scaler(VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
