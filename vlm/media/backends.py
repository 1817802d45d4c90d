"""Optional readers behind the same function: torchcodec, and decord (or decord2, which has the same module name).

PyAV still opens the file first: the limits, the clock and the refusal of playlists are the same for every back end.
Only frames at their own size come from these libraries; scaling is ours, so that pixels agree as well.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from vlm.errors import ConfigError, MediaError, MissingDependencyError
from vlm.media.convert import Scaler, resize
from vlm.media.limits import MediaLimits
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


class _OptionalReader:
    """What both have in common: PyAV's facts first, then chunks of frames scaled by us."""

    backend = ""

    def __init__(self, source: Source, limits: MediaLimits) -> None:
        self._load_library()
        with PyavReader(source, limits) as reader:
            self.info = replace(reader.info, backend=self.backend)
        self._source = source
        self._limits = limits
        self._file = source.open()
        try:
            self._decoder = self._open(str(source.path) if source.path is not None else self._file)
        except Exception as error:  # the libraries document no exception types
            self._close()
            raise MediaError(source.name, f"{self.backend} cannot open it: {error}") from error

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
        try:
            for frames, seconds in self._chunks(request):
                for frame, time in zip(frames, seconds, strict=True):
                    yield resize(frame, scaler), float(time)
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise MediaError(self._source.name, f"{self.backend} cannot decode it: {error}") from error

    def _load_library(self) -> None:
        raise NotImplementedError

    def _open(self, target: Any) -> Any:
        raise NotImplementedError

    def _chunks(self, request: Request) -> Iterator[tuple[np.ndarray, np.ndarray]]:
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
        return self._class(target, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")

    def _chunks(self, request: Request) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        zero = self.info.start
        if request.times is None:
            yield from self._range(request.start + zero, request.end + zero)
            return
        facts = self._decoder.metadata
        latest = math.nextafter(facts.end_stream_seconds, -math.inf)
        times = np.clip(request.times + zero + _SLACK, facts.begin_stream_seconds, latest)
        for place in range(0, len(times), _CHUNK):
            batch = self._decoder.get_frames_played_at(times[place : place + _CHUNK].tolist())
            yield batch.data.numpy(), batch.pts_seconds.numpy() - zero

    def _range(self, first: float, last: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        facts = self._decoder.metadata
        first, last = max(first, facts.begin_stream_seconds), min(last, facts.end_stream_seconds)
        step = _CHUNK / (self.info.fps or 25.0)
        seen = -math.inf
        while first < last:
            batch = self._decoder.get_frames_played_in_range(first, min(first + step, last))
            seconds = batch.pts_seconds.numpy()
            new = seconds > seen  # the frame shown across a boundary comes with both chunks
            if new.any():
                yield batch.data.numpy()[new], seconds[new] - self.info.start
                seen = float(seconds[-1])
            first += step


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
        reader = self._class(target, num_threads=1)
        exact = presentation_times(self._source, self._limits) - self.info.start
        rough = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64)[:, 0] - self.info.start
        # decord rounds times to float32; where both count the same frames, the container's own are used.
        self._starts = exact if len(exact) == len(rough) else rough
        return reader

    def _chunks(self, request: Request) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if request.times is not None:
            indices = np.searchsorted(self._starts, request.times + _SLACK, side="right") - 1
        else:
            first = int(np.searchsorted(self._starts, request.start + _SLACK, side="right")) - 1
            indices = np.arange(max(first, 0), int(np.searchsorted(self._starts, request.end - _SLACK)))
        indices = np.maximum(indices, 0)
        for place in range(0, len(indices), _CHUNK):
            part = indices[place : place + _CHUNK]
            yield self._decoder.get_batch(part.tolist()).asnumpy(), self._starts[part]
