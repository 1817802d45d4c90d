"""The default reader: PyAV with seeking, exact to the frame, on two containers when frames are far apart."""

from __future__ import annotations

import os
import queue
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from vlm.errors import MediaError, MediaWarning, TruncatedMediaWarning
from vlm.media.convert import Scaler, quarter_turns
from vlm.media.cursor import Cursor, pts_of
from vlm.media.limits import Deadline, MediaLimits
from vlm.media.probe import audio_stream, find_duration, presentation_zero, video_stream
from vlm.media.source import Source, open_container
from vlm.media.types import VideoInfo

if TYPE_CHECKING:
    from av import VideoFrame

_SLACK = Fraction(1, 1_000_000)  # s; a target this little before a frame's own time still means that frame
_TARGETS_PER_JOB = 4  # at least; memory in flight stays constant whatever is asked for
_SPARSE = 4  # targets per seek up to which two independent containers beat one decoder with two threads

FrameAt = tuple[np.ndarray, float]


@dataclass(frozen=True)
class Request:
    """What a reader is asked for.

    Attributes:
        times: Ascending target times in seconds, None for every frame of the window.
        start: Window start in seconds.
        end: Window end in seconds.
        size: (height, width) or None.
        snap: "exact" or "keyframe".
    """

    times: np.ndarray | None
    start: float
    end: float
    size: tuple[int, int] | None
    snap: str = "exact"


class PyavReader:
    """Reads one source through PyAV. A context manager.

    Args:
        source: The opened-able thing.
        limits: Checked before and while decoding.

    Raises:
        MediaError: Not a video that can be read.
    """

    def __init__(self, source: Source, limits: MediaLimits) -> None:
        self._source = source
        self._limits = limits
        self.deadline = Deadline(limits.max_wall_seconds)
        self._cursors: list[Cursor] = []
        container = open_container(source, limits)
        try:
            stream = video_stream(container, source)
            limits.check_pixels(source.name, stream.codec_context.width, stream.codec_context.height)
            cursor = Cursor(container, stream, source, limits, self.deadline)
            self._cursors.append(cursor)
            first = next(cursor.frames_at([stream.start_time or 0]), None)
            cursor.missing.clear()
            begin = stream.start_time if first is None else first.pts
            self._zero = presentation_zero(container, stream, begin)
            duration = find_duration(container, stream, begin, self._zero, source, limits, self.deadline)
            self.info = self._describe(cursor, first, duration)
        except BaseException:
            container.close()
            raise

    def __enter__(self) -> PyavReader:
        return self

    def __exit__(self, *exc: object) -> None:
        for cursor in self._cursors:
            cursor.close()

    def _describe(self, cursor: Cursor, first: VideoFrame | None, duration: float | None) -> VideoInfo:
        """The first frame is looked at as well: only frames know the rotation, and some headers no size."""
        stream = cursor.stream
        width, height = stream.codec_context.width, stream.codec_context.height
        turns = 0
        if first is not None:
            width, height, turns = first.width, first.height, quarter_turns(first)
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate) if rate else None
        guess = round(duration * fps) if duration and fps else None
        return VideoInfo(
            source=self._source.name,
            width=height if turns % 2 else width,
            height=width if turns % 2 else height,
            duration=duration,
            start=float(self._zero),
            fps=fps,
            num_frames=stream.frames or guess,
            codec=stream.codec_context.name,
            rotation=turns * 90,
            has_audio=audio_stream(cursor.container) is not None,
            backend="pyav",
        )

    # ---------------------------------------------------------------- frames

    def frames(self, request: Request) -> Generator[FrameAt, None, None]:
        """Yield (uint8 [H, W, 3], seconds) in order; warns at the end about damage or an early end of the file."""
        cursor = self._cursors[0]
        if request.times is None:
            yield from self._every(cursor, request)
        else:
            ticks = [self._to_tick(t) for t in request.times.tolist()]
            if request.snap == "keyframe":
                yield from self._keyframes(cursor, ticks, request)
            else:
                yield from self._exact(cursor, ticks, request)
        self._report(request)

    def times(self, request: Request) -> np.ndarray | None:
        """Times of the frames that `frames` yields, in seconds, without decoding them; None where only decoding tells."""
        if request.times is None or request.snap != "exact":
            return None
        found = self._cursors[0].times_at([self._to_tick(t) for t in request.times.tolist()])
        return None if found is None else np.array([self._to_seconds(tick) for tick in found])

    def _every(self, cursor: Cursor, request: Request) -> Iterator[FrameAt]:
        scale = Scaler(self._source.name, request.size, self._limits)
        for frame in cursor.frames_between(self._to_tick(request.start), self._to_stop(request.end)):
            yield scale(frame), self._to_seconds(pts_of(frame))

    def _keyframes(self, cursor: Cursor, ticks: Sequence[int], request: Request) -> Iterator[FrameAt]:
        scale = Scaler(self._source.name, request.size, self._limits)
        last: VideoFrame | None = None
        shown: FrameAt | None = None
        for tick in ticks:
            frame = cursor.keyframe_at(tick)
            if frame is None:
                cursor.missing.append(tick)
                continue
            if shown is None or frame is not last:
                last, shown = frame, (scale(frame), self._to_seconds(pts_of(frame)))
            yield shown

    def _exact(self, cursor: Cursor, ticks: Sequence[int], request: Request) -> Iterator[FrameAt]:
        groups = cursor.groups(ticks)
        workers = min(2, os.cpu_count() or 1, len(groups))
        alone = workers < 2 or not self._source.reopenable or cursor.reordered
        if alone or len(ticks) > _SPARSE * len(groups):
            scale = Scaler(self._source.name, request.size, self._limits)
            for frame in cursor.frames_at(ticks):
                yield scale(frame), self._to_seconds(pts_of(frame))
            return
        size = request.size or (self.info.height, self.info.width)
        scalers = [Scaler(self._source.name, size, self._limits) for _ in range(workers)]
        while len(self._cursors) < workers:
            self._cursors.append(self._open_another())
        yield from self._parallel(groups, list(zip(self._cursors, scalers, strict=True)))

    def _parallel(self, groups: list[list[int]], tools: list[tuple[Cursor, Scaler]]) -> Iterator[FrameAt]:
        """Decode groups in turn on several containers, in order, holding at most two jobs' frames per container."""
        idle: queue.SimpleQueue[tuple[Cursor, Scaler]] = queue.SimpleQueue()
        for tool in tools:
            idle.put(tool)

        def work(ticks: list[int]) -> list[FrameAt]:
            tool = idle.get()
            cursor, scale = tool
            try:
                return [(scale(frame), self._to_seconds(pts_of(frame))) for frame in cursor.frames_at(ticks)]
            finally:
                idle.put(tool)

        jobs: deque[Future[list[FrameAt]]] = deque()
        pool = ThreadPoolExecutor(len(tools), thread_name_prefix="vlm-media")
        try:
            for part in _parts(groups):
                if len(jobs) == 2 * len(tools):
                    yield from jobs.popleft().result()
                jobs.append(pool.submit(work, part))
            while jobs:
                yield from jobs.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _open_another(self) -> Cursor:
        container = open_container(self._source, self._limits)
        return Cursor(container, video_stream(container, self._source), self._source, self._limits, self.deadline)

    # ---------------------------------------------------------------- times and warnings

    def _to_tick(self, seconds: float) -> int:
        base = self._cursors[0].base
        return int((Fraction(seconds) + self._zero + min(_SLACK, base / 2)) // base)

    def _to_stop(self, seconds: float) -> int:
        """First tick that is not before `seconds`."""
        base = self._cursors[0].base
        return -int(-(Fraction(seconds) + self._zero - min(_SLACK, base / 2)) // base)

    def _to_seconds(self, tick: int) -> float:
        return float(tick * self._cursors[0].base - self._zero)

    def _report(self, request: Request) -> None:
        missing = [tick for cursor in self._cursors for tick in cursor.missing]
        damaged = sum(cursor.damaged for cursor in self._cursors)
        ends = [cursor.last_end for cursor in self._cursors if cursor.last_end is not None]
        name = self._source.name
        if missing and request.times is not None and len(missing) == len(request.times):
            raise MediaError(name, self._nothing(request, damaged))
        if missing:
            at = f" at {self._to_seconds(max(ends)):.3f} s" if ends else ""
            text = f"{name}: is cut off{at} of {self.info.duration or 0:.3f} s; only the frames before are used"
            warnings.warn(TruncatedMediaWarning(text), stacklevel=2)
        elif damaged:
            warnings.warn(MediaWarning(f"{name}: {damaged} damaged packets were left out"), stacklevel=2)

    def _nothing(self, request: Request, damaged: int) -> str:
        window = f"between {request.start:.3f} and {request.end:.3f} s"
        if any(cursor.cut_off for cursor in self._cursors):
            return f"is cut off and holds no frame {window}"
        if damaged:
            return f"no frame can be decoded {window} ({damaged} damaged packets)"
        return f"holds no frame {window}; its header is wrong about the length"


def _parts(groups: list[list[int]]) -> Iterator[list[int]]:
    """Join whole groups into jobs of a few targets."""
    part: list[int] = []
    for group in groups:
        part += group
        if len(part) >= _TARGETS_PER_JOB:
            yield part
            part = []
    if part:
        yield part
