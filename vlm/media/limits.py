"""`MediaLimits`: how much a file may cost, checked before decoding and again while decoding."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vlm.errors import ConfigError, MediaLimitError


@dataclass(frozen=True)
class MediaLimits:
    """Upper bounds for one medium. Every check raises `MediaLimitError` naming the file, its value and the limit.

    Attributes:
        max_bytes: Size of the (compressed) file.
        max_pixels: Width × height of one frame or image.
        max_seconds: Length of a video or of decoded sound.
        max_frames: Frames of one request.
        max_source_frames: Frames of an animated image, a folder or a sequence, from which a request takes some.
        max_decoded_bytes: Decoded frames (or samples) held at once.
        max_wall_seconds: Time spent in one request (the caller's own between batches not counted), checked between
            packets or stills. A hard limit, which also covers a hang
            inside a decoder, is `load_video(..., timeout=...)`.
    """

    max_bytes: int = 8 << 30
    max_pixels: int = 50_000_000
    max_seconds: float = 24 * 3600.0
    max_frames: int = 65_536
    max_source_frames: int = 65_536
    max_decoded_bytes: int = 4 << 30
    max_wall_seconds: float = 3600.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"MediaLimits.{name} must be positive, not {value!r}")

    def check_bytes(self, source: str, size: int) -> None:
        """Check the compressed size."""
        self._check(source, "bytes of file", size, "max_bytes", self.max_bytes)

    def check_pixels(self, source: str, width: int, height: int) -> None:
        """Check the picture size before (or between) frames."""
        self._check(source, f"pixels ({width} × {height})", width * height, "max_pixels", self.max_pixels)

    def check_seconds(self, source: str, seconds: float) -> None:
        """Check a claimed or decoded length; a length that is no finite number is refused as well."""
        if not math.isfinite(seconds):
            raise MediaLimitError(source, f"claims a length of {seconds} s")
        self._check(source, "seconds", seconds, "max_seconds", self.max_seconds)

    def check_frames(self, source: str, count: int) -> None:
        """Check the number of frames of a request."""
        self._check(source, "frames", count, "max_frames", self.max_frames)

    def check_source_frames(self, source: str, count: int) -> None:
        """Check the number of frames that an animation, a folder or a sequence holds."""
        self._check(source, "frames in it", count, "max_source_frames", self.max_source_frames)

    def check_decoded(self, source: str, size: int) -> None:
        """Check the bytes that decoded frames or samples occupy together."""
        self._check(source, "decoded bytes", size, "max_decoded_bytes", self.max_decoded_bytes)

    @staticmethod
    def _check(source: str, what: str, value: float, name: str, limit: float) -> None:
        if value > limit:
            raise MediaLimitError(
                source, f"{value:,.10g} {what} exceed the limit of {limit:,.10g}; raise MediaLimits.{name} to allow it"
            )


class Deadline:
    """A wall-clock budget that long loops look at."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self._paused = False

    def check(self, source: str) -> None:
        """Raise `MediaLimitError` once the budget is spent."""
        if time.monotonic() > self._end and not self._paused:
            raise MediaLimitError(
                source, f"decoding took longer than {self.seconds:g} s; raise MediaLimits.max_wall_seconds to allow it"
            )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside is somebody else's and not counted."""
        began = time.monotonic()
        self._paused = True
        try:
            yield
        finally:
            self._end += time.monotonic() - began
            self._paused = False
