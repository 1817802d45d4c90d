"""Sound tracks: any file with sound -> float32 samples at the wanted rate, limited while streaming."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from fractions import Fraction
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from vlm.errors import ConfigError, MediaError, MediaWarning
from vlm.media.limits import Deadline, MediaLimits
from vlm.media.probe import audio_stream, check_decoder, presentation_zero, stated_end
from vlm.media.source import Source, open_container, packets_of, resolve
from vlm.media.types import Audio

if TYPE_CHECKING:
    from av import AudioFrame, AudioResampler, AudioStream
    from av.container import InputContainer

_GAP = 0.05  # s; where the stated times differ by more from the samples so far, silence or a cut keeps sound in place
_RESTART = 1.0  # s; a leap back by more than this is a clock that begins anew (files put one after another)
_MAX_RATE = 768_000  # samples per second; the highest that sound is recorded at
_PREROLL = 1.0  # s; decoded before the window and thrown away, because codecs need some packets to settle


def load_audio(
    src: str | Path | bytes | BinaryIO,
    *,
    rate: int,
    start: float | None = None,
    end: float | None = None,
    limits: MediaLimits | None = None,
    timeout: float | None = None,
) -> Audio:
    """Decode the sound of an audio or video file.

    Args:
        src: Path, bytes or binary file object.
        rate: Samples per second of the result.
        start: Start of the window in seconds (0 is the presentation start, as in `load_video`).
        end: End of the window in seconds.
        limits: `max_seconds` and `max_decoded_bytes` also hold for the samples while they are decoded: a small file can
            hold hours.
        timeout: Decode in a child process that is killed after this many seconds, as in `load_video`.

    Returns:
        `Audio` with float32 [C, S]; `start` is the time of its first sample.

    Raises:
        ConfigError: An impossible rate or window.
        MediaError: No sound track, or nothing in the window can be decoded.
        MediaLimitError: More sound than the limits allow.
    """
    if timeout is not None:
        from vlm.media.isolate import run_isolated

        return run_isolated("load_audio", src, timeout=timeout, rate=rate, start=start, end=end, limits=limits)
    check_rate("rate", rate)
    if not (0 <= (start or 0) < math.inf) or (end is not None and not end > (start or 0)):
        raise ConfigError(f"start={start} and end={end} must be seconds with 0 <= start < end")
    limits = limits or MediaLimits()
    return read_audio(resolve(src, limits), rate, start or 0.0, end, limits)


def check_rate(name: str, rate: int) -> None:
    """Refuse a sample rate that no sound has; `name` is the argument's.

    Raises:
        ConfigError: Names the argument and the value.
    """
    if not (isinstance(rate, Integral) and 1 <= rate <= _MAX_RATE):
        raise ConfigError(f"{name} must be a number of samples per second from 1 to {_MAX_RATE}, not {rate!r}")


def read_audio(
    source: Source, rate: int, start: float, end: float | None, limits: MediaLimits, zero: float | None = None
) -> Audio:
    """`load_audio` on a resolved source; `zero` is the container time of second 0 if the caller knows it."""
    with open_container(source, limits) as container:
        stream = audio_stream(container)
        if stream is None:
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "none"
            raise MediaError(source.name, f"has no sound track (streams: {kinds})")
        check_decoder(stream, source)
        if zero is None:
            video = container.streams.video[0] if container.streams.video else None
            origin = presentation_zero(container, video, video.start_time if video is not None else None)
        else:
            origin = Fraction(zero)
        return _Track(container, stream, source, limits, origin).read(rate, start, end)


class _Track:
    """Decodes one sound track from start to end of a window."""

    def __init__(
        self, container: InputContainer, stream: AudioStream, source: Source, limits: MediaLimits, zero: Fraction
    ) -> None:
        self._container = container
        self._stream = stream
        self._source = source
        self._limits = limits
        self._deadline = Deadline(limits.max_wall_seconds)
        self._zero = zero
        self._damaged = 0
        self._bytes = 0  # of resampled sound so far

    def read(self, rate: int, start: float, end: float | None) -> Audio:
        from av import AudioResampler

        if end is None:
            stated = stated_end(self._container, self._stream)
            if stated is not None:
                self._limits.check_seconds(self._source.name, max(float(stated - self._zero) - start, 0.0))
        resampler = AudioResampler(format="fltp", rate=rate)
        parts: list[np.ndarray] = []
        first: float | None = None
        for time, frame in self._in_place(start, end):
            first = time if first is None else first
            parts += self._resample(resampler, frame)
        parts += self._resample(resampler, None) if first is not None else []
        if self._damaged:
            text = f"{self._source.name}: {self._damaged} damaged packets of sound were left out"
            warnings.warn(MediaWarning(text), stacklevel=4)
        if first is None or not parts:
            raise MediaError(self._source.name, "holds no sound that can be decoded in the requested window")
        return self._cut(np.concatenate(parts, axis=1), rate, first, start, end)

    def _cut(self, samples: np.ndarray, rate: int, first: float, start: float, end: float | None) -> Audio:
        """Trim to the window, to the sample."""
        skip = max(round((start - first) * rate), 0)
        stop = samples.shape[1] if end is None else max(round((end - first) * rate), skip)
        samples = np.ascontiguousarray(samples[:, skip:stop])
        if samples.shape[1] == 0:
            raise MediaError(self._source.name, "holds no sound in the requested window")
        return Audio(samples=samples, rate=rate, start=first + skip / rate)

    def _resample(self, resampler: AudioResampler, frame: AudioFrame | None) -> list[np.ndarray]:
        """Feed one frame (None drains) -> float32 [C, s] pieces; counts them against the limits."""
        import av

        try:
            parts = [part.to_ndarray() for part in resampler.resample(frame)]
        except (av.FFmpegError, ValueError, MemoryError) as error:
            raise MediaError(self._source.name, f"its sound cannot be resampled: {error}") from error
        for part in parts:
            self._bytes += part.nbytes
            self._limits.check_decoded(self._source.name, self._bytes)
            self._limits.check_seconds(self._source.name, self._bytes / (4 * part.shape[0] * resampler.rate))
        return parts

    def _in_place(self, start: float, end: float | None) -> Iterator[tuple[float, AudioFrame]]:
        """Decoded frames with the time of their first sample, without holes (silence) and overlaps (cut away).

        Time is the first stated time plus the samples since: so a stream whose stated times drift away from its samples,
        however little each time, is brought back in place once they are `_GAP` apart.
        """
        now: float | None = None
        shift = 0.0  # of the stated times, after a clock that began anew
        layout: tuple[str, int, str] | None = None
        for frame in self._decoded(start):
            kind = (frame.layout.name, frame.sample_rate, frame.format.name)
            layout = layout or kind
            if kind != layout or frame.samples == 0:
                self._damaged += 1  # the stream changes its channels or rate midway: nothing sensible follows
                continue
            given = frame.pts * frame.time_base - self._zero if frame.pts is not None and frame.time_base else None
            stated = float(given) + shift if given is not None else now or 0.0
            if now is not None and stated - now < -_RESTART:
                shift += now - stated
                stated = now
            now = stated if now is None else now
            place = stated if stated - now > _GAP else now
            if end is not None and place >= end:
                return
            if place > now:
                self._limits.check_seconds(self._source.name, place - now)
                yield from self._silence(frame, now, place)
            elif now - stated > _GAP:
                surplus = round((now - stated) * frame.sample_rate)
                if surplus >= frame.samples:
                    continue
                frame = _without_first(frame, surplus)
            now = place + frame.samples / frame.sample_rate
            if now <= start:
                continue
            frame.pts = None
            yield place, frame

    def _silence(self, like: AudioFrame, begin: float, end: float) -> Iterator[tuple[float, AudioFrame]]:
        from av import AudioFrame

        remaining = round((end - begin) * like.sample_rate)
        while remaining > 0:
            count = min(remaining, like.sample_rate)
            frame = AudioFrame(format=like.format.name, layout=like.layout.name, samples=count)
            quiet = 128 if like.format.name.startswith("u8") else 0
            for plane in frame.planes:
                plane.update(bytes([quiet]) * plane.buffer_size)
            frame.sample_rate = like.sample_rate
            yield begin, frame
            begin += count / like.sample_rate
            remaining -= count

    def _decoded(self, start: float) -> Iterator[AudioFrame]:
        import av

        base = self._stream.time_base or Fraction(1)
        if start > _PREROLL:
            try:
                offset = int((Fraction(start - _PREROLL) + self._zero) / base)
                self._container.seek(offset, stream=self._stream, backward=True)
            except (av.FFmpegError, OSError):
                pass  # decode from the beginning
        packets = packets_of(self._container, self._stream)
        while True:
            self._deadline.check(self._source.name)
            try:
                packet = next(packets, None)
            except av.FFmpegError:
                self._damaged += 1
                return
            if packet is None:
                return
            try:
                yield from self._stream.codec_context.decode(packet if packet.size else None)
            except av.error.EOFError:
                return
            except (av.FFmpegError, MemoryError):
                self._damaged += 1


def _without_first(frame: AudioFrame, count: int) -> AudioFrame:
    """A frame less its first `count` samples, of which it has more."""
    from av import AudioFrame

    width = 1 if frame.format.is_planar else frame.layout.nb_channels
    samples: Any = np.ascontiguousarray(frame.to_ndarray()[:, count * width :])
    rest = AudioFrame.from_ndarray(samples, format=frame.format.name, layout=frame.layout.name)
    rest.sample_rate = frame.sample_rate
    return rest
