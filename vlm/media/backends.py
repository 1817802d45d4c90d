"""Optional readers behind the same function: torchcodec, and decord (or decord2, which has the same module name).

PyAV still opens the file first: the limits, the clock and the refusal of playlists are the same for every back end.
Only frames at their own size come from these libraries; scaling is ours, so that pixels agree as well.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np

from vlm.errors import ConfigError, MediaError, MissingDependencyError
from vlm.media.convert import Scaler, resize
from vlm.media.limits import Deadline, MediaLimits
from vlm.media.probe import presentation_times
from vlm.media.pyav import FrameAt, PyavReader, Request
from vlm.media.source import Source

_CHUNK = 16  # frames asked for at once, so that memory stays constant
_SLACK = 1e-6  # s, as in the PyAV reader


def open_optional(backend: str, source: Source, limits: MediaLimits) -> TorchcodecReader | DecordReader:
    """Open a source with one of the optional back ends.

    Raises:
        MissingDependencyError: Its package is not installed or cannot be loaded.
    """
    return TorchcodecReader(source, limits) if backend == "torchcodec" else DecordReader(source, limits)


def usable_backends() -> list[str]:
    """Names of the back ends that can be used here, the default first."""
    usable = ["pyav"]
    for name, module in (("torchcodec", "torchcodec.decoders"), ("decord", "decord")):
        try:
            import_module(module)
        except (ImportError, OSError, RuntimeError):  # installed without the libraries it was linked against
            continue
        usable.append(name)
    return usable


class _OptionalReader:
    """What both have in common: PyAV's facts first, then chunks of frames scaled by us."""

    backend = ""

    def __init__(self, source: Source, limits: MediaLimits) -> None:
        self._load_library()
        self.deadline = Deadline(limits.max_wall_seconds)
        with PyavReader(source, limits) as reader:
            self.info = replace(reader.info, backend=self.backend)
        self._source = source
        self._limits = limits
        self._file = source.open()
        try:
            self._decoder = self._open(str(source.path) if source.path is not None else self._file)
        except MissingDependencyError:
            self._close()
            raise
        except Exception as error:  # the libraries document no exception types
            self._close()
            raise MediaError(source.name, f"{self.backend} cannot open it: {error}") from error
        # These libraries address frames by index and round their times, so the times are the container's own.
        self._starts = presentation_times(source, limits) - self.info.start
        count = self._count()
        if len(self._starts) != count:
            self._close()
            difference = f"sees {count} frames where the file presents {len(self._starts)}"
            raise MediaError(source.name, f"{self.backend} {difference}; use the default back end")

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def _close(self) -> None:
        self._decoder = None
        if self._source.reopenable:
            self._file.close()

    def frames(self, request: Request) -> Generator[FrameAt, None, None]:
        """Yield (uint8 [H, W, 3], seconds) in order."""
        if request.snap != "exact":
            raise ConfigError(f"snap={request.snap!r} is offered by the pyav back end only, not by {self.backend}")
        size = request.size or (self.info.height, self.info.width)
        scaler = Scaler(self._source.name, size, self._limits)
        for frames, seconds in self._chunks(request):
            for frame, time in zip(frames, seconds, strict=True):
                yield resize(frame, scaler), float(time)

    def times(self, request: Request) -> np.ndarray | None:
        """Times of the frames that `frames` yields, in seconds, without decoding them."""
        found: np.ndarray = self._starts[self._indices(request)]
        return found if request.snap == "exact" else None

    def _indices(self, request: Request) -> np.ndarray:
        if request.times is not None:
            return np.maximum(np.searchsorted(self._starts, request.times + _SLACK, side="right") - 1, 0)
        first = int(np.searchsorted(self._starts, request.start + _SLACK, side="right")) - 1
        return np.arange(max(first, 0), int(np.searchsorted(self._starts, request.end - _SLACK)))

    def _chunks(self, request: Request) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        starts, indices = self._starts, self._indices(request)
        for place in range(0, len(indices), _CHUNK):
            self.deadline.check(self._source.name)
            part = indices[place : place + _CHUNK]
            try:
                frames = self._frames_at(part.tolist())
            except Exception as error:  # the libraries document no exception types
                raise MediaError(self._source.name, f"{self.backend} cannot decode it: {error}") from error
            yield frames, starts[part]

    def _load_library(self) -> None:
        """Import the package, or raise `MissingDependencyError`."""
        raise NotImplementedError

    def _open(self, target: Any) -> Any:
        """Open a path or file object with the package."""
        raise NotImplementedError

    def _count(self) -> int:
        """Number of frames the package sees."""
        raise NotImplementedError

    def _frames_at(self, indices: list[int]) -> np.ndarray:
        """Decode frames by their index on screen -> uint8 [n, H, W, 3]."""
        raise NotImplementedError


class TorchcodecReader(_OptionalReader):
    """Reads through torchcodec, which needs a system FFmpeg."""

    backend = "torchcodec"

    def _load_library(self) -> None:
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: no FFmpeg it can load
            raise MissingDependencyError("torchcodec", "codec", "backend='torchcodec'") from error
        self._class = VideoDecoder

    def _open(self, target: Any) -> Any:
        try:
            return self._class(target, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        except RuntimeError as error:
            if "libtorchcodec" in str(error):  # newer versions look for FFmpeg when they are first used
                raise MissingDependencyError("torchcodec", "codec", "backend='torchcodec'") from error
            raise

    def _count(self) -> int:
        return len(self._decoder)

    def _frames_at(self, indices: list[int]) -> np.ndarray:
        return self._decoder.get_frames_at(indices).data.numpy()


class DecordReader(_OptionalReader):
    """Reads through decord or decord2."""

    backend = "decord"

    def _load_library(self) -> None:
        try:
            import decord
        except (ImportError, OSError) as error:
            raise MissingDependencyError("decord", "codec", "backend='decord'") from error
        self._class = decord.VideoReader

    def _open(self, target: Any) -> Any:
        return self._class(target, num_threads=1)

    def _count(self) -> int:
        return len(self._decoder)

    def _frames_at(self, indices: list[int]) -> np.ndarray:
        return self._decoder.get_batch(indices).asnumpy()
