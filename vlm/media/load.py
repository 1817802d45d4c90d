"""`load_video`, `iter_video` and `probe`: one door for every source and every back end."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, Self, get_args

import numpy as np

from vlm.errors import ConfigError, MediaError, MediaLimitError, MediaWarning
from vlm.media.audio import check_rate, read_audio
from vlm.media.convert import resolve_size
from vlm.media.limits import Deadline, MediaLimits
from vlm.media.pyav import FrameAt, PyavReader, Request
from vlm.media.sampling import Sampling, check_request, count_times, resolve_window, sample_times
from vlm.media.source import Source, resolve_files
from vlm.media.stills import from_animation, from_folder, from_frames
from vlm.media.types import Audio, Video, VideoInfo

Backend = Literal["auto", "pyav", "torchcodec", "decord"]
Snap = Literal["exact", "keyframe"]
_SLACK = 1e-6  # s
VideoSource = str | Path | bytes | BinaryIO | np.ndarray | Sequence[Any]


class Reader(Protocol):
    """What a back end has to offer; a context manager that closes what it opened."""

    info: VideoInfo
    deadline: Deadline

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def frames(self, request: Request) -> Generator[FrameAt, None, None]: ...

    def times(self, request: Request) -> np.ndarray | None: ...


def load_video(
    src: VideoSource,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
    size: tuple[int, int] | int | None = None,
    sampling: Sampling = "centres",
    backend: Backend = "auto",
    snap: Snap = "exact",
    audio_rate: int | None = None,
    frame_fps: float = 1.0,
    limits: MediaLimits | None = None,
    timeout: float | None = None,
) -> Video:
    """Sample frames of a video with their true presentation times.

    The frame taken for a target time is the one being shown at that time (the largest timestamp not after it), so a
    request for more frames than the window holds repeats frames, each with its own true time.

    Args:
        src: Path of a video file, of an animated GIF/WebP/PNG or of a folder of images; bytes; a binary file object; an
            array uint8 [T, H, W, 3]; or a sequence of frames.
        num_frames: Number of frames, or
        fps: frames per second. Not both; with neither, every frame of the window is returned.
        start: Start of the window in seconds; None for the beginning.
        end: End of the window in seconds; None for the end.
        size: (height, width) of the frames, an int for a square (plain resize, aspect ratio not kept), None for the
            file's own. Scaling happens inside the decoder's conversion (bicubic).
        sampling: "centres" or "endpoints", see `sample_times`.
        backend: "auto" (PyAV), "pyav", "torchcodec" or "decord". All return the same frames and times.
        snap: "keyframe" takes the nearest earlier keyframe instead of the exact frame: several times faster, with
            the keyframe's own time in `timestamps`.
        audio_rate: Also decode the sound of the window at this rate; None leaves it out.
        frame_fps: Rate at which frames given as images or arrays are shown; they carry no times of their own.
        limits: Upper bounds, checked before and while decoding.
        timeout: Decode in a child process that is killed after this many seconds (memory is limited as well). For
            files from strangers: not even a hang or crash inside a codec reaches the caller.

    Returns:
        A `Video`; `frames` is uint8 [T, H, W, 3], `timestamps` float64 [T] in seconds.

    Raises:
        ConfigError: An argument makes no sense.
        MediaError: The file cannot be used; the message names it and the cause.
        MediaLimitError: The file or the request exceeds `limits`.
        MissingDependencyError: The package of the chosen back end is not installed.

    Warns:
        TruncatedMediaWarning: The file ends early; only the frames before the cut are returned.
        MediaWarning: Damaged packets were left out, or the sound of the window cannot be had (`audio` is None then).
    """
    if timeout is not None:
        from vlm.media.isolate import run_isolated

        return run_isolated(
            "load_video",
            src,
            timeout=timeout,
            num_frames=num_frames,
            fps=fps,
            start=start,
            end=end,
            size=size,
            sampling=sampling,
            backend=backend,
            snap=snap,
            audio_rate=audio_rate,
            frame_fps=frame_fps,
            limits=limits,
        )
    limits = limits or MediaLimits()
    check_request(num_frames=num_frames, fps=fps, rule=sampling)
    if audio_rate is not None:
        check_rate("audio_rate", audio_rate)
    files = resolve_files(src, limits)
    with _open_reader(files, backend, frame_fps, limits) as reader:
        request_ = _request(reader.info, num_frames, fps, start, end, size, sampling, snap, limits)
        frames, times = _collect(reader, request_, limits)
        info = reader.info
    audio = _load_sound(files, info, request_, audio_rate, limits)
    return Video(
        frames=frames,
        timestamps=times,
        duration=info.duration if info.duration is not None else request_.end,
        source=info.source,
        audio=audio,
        info=info,
        snap=snap,
        start=request_.start,
        end=request_.end,
    )


def iter_video(
    src: VideoSource,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
    size: tuple[int, int] | int | None = None,
    sampling: Sampling = "centres",
    backend: Backend = "auto",
    snap: Snap = "exact",
    frame_fps: float = 1.0,
    limits: MediaLimits | None = None,
    batch_frames: int = 32,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Stream the frames `load_video` would return, in batches and in constant memory.

    Args:
        batch_frames: Frames per batch (the last may be smaller). `limits.max_decoded_bytes` holds per batch.

    Other arguments, errors and warnings are those of `load_video`.

    Yields:
        (frames uint8 [b, H, W, 3], timestamps float64 [b]).
    """
    if batch_frames < 1:
        raise ConfigError(f"batch_frames must be at least 1, not {batch_frames}")
    limits = limits or MediaLimits()
    check_request(num_frames=num_frames, fps=fps, rule=sampling)
    with _open_reader(resolve_files(src, limits), backend, frame_fps, limits) as reader:
        request = _request(reader.info, num_frames, fps, start, end, size, sampling, snap, limits)
        height, width = request.size or (reader.info.height, reader.info.width)
        limits.check_decoded(reader.info.source, batch_frames * height * width * 3)
        with closing(_limited(reader, request, limits)) as stream:
            while batch := list(islice(stream, batch_frames)):
                arrays = _stack(batch)
                with reader.deadline.paused():
                    yield arrays


@dataclass(frozen=True)
class VideoPlan:
    """Which frames `load_video` would give and when they are shown. They are decoded when they are looked at, so that of several processes
    each can decode its own.

    Attributes:
        timestamps: As in `Video`, float64 [T]; likewise
        info, start and end.
        request: What is asked of the reader.
        files: What was asked for, opened-able.
        how: (back end, frame_fps, limits).
    """

    timestamps: np.ndarray
    info: VideoInfo
    start: float
    end: float
    request: Request
    files: Any
    how: tuple[Backend, float, MediaLimits]

    def __len__(self) -> int:
        return len(self.timestamps)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Decode some of the frames: uint8 [n, H, W, 3].

        Their number is what was planned, whatever is damaged, because other processes count on it: where a frame cannot be had, the
        picture stands still, and is grey if none of these can.

        Warns:
            MediaWarning: Some cannot.
        """
        wanted = self.timestamps[rows]
        height, width = self.request.size or (self.info.height, self.info.width)
        out = np.full((len(wanted), height, width, 3), 128, np.uint8)
        if not len(wanted):
            return out
        backend, frame_fps, limits = self.how
        limits.check_decoded(self.info.source, out.nbytes)
        request = replace(self.request, times=wanted, size=(height, width))
        found: list[FrameAt] = []
        with suppress(MediaError), _open_reader(self.files, backend, frame_fps, limits) as reader:
            found += reader.frames(request)
        times = np.array([seconds for _, seconds in found] or [-1.0])
        place = np.maximum(np.searchsorted(times, wanted + _SLACK, side="right") - 1, 0)
        if lost := int((np.abs(times[place] - wanted) > _SLACK).sum()):
            warnings.warn(
                MediaWarning(f"{self.info.source}: {lost} frames cannot be decoded; the picture stands still"),
                stacklevel=2,
            )
        for i, j in enumerate(place if found else ()):
            out[i] = found[j][0]
        return out


def plan_video(
    src: VideoSource,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
    size: tuple[int, int] | int | None = None,
    sampling: Sampling = "centres",
    backend: Backend = "auto",
    frame_fps: float = 1.0,
    limits: MediaLimits | None = None,
) -> VideoPlan | None:
    """What `load_video` would give, without decoding it; None where only decoding tells (files that are cut off or give no times).

    Arguments and errors are those of `load_video`.
    """
    limits = limits or MediaLimits()
    check_request(num_frames=num_frames, fps=fps, rule=sampling)
    files = resolve_files(src, limits)
    with _open_reader(files, backend, frame_fps, limits) as reader:
        request = _request(reader.info, num_frames, fps, start, end, size, sampling, "exact", limits)
        times = reader.times(request)
        if times is None or not len(times):
            return None
        return VideoPlan(times, reader.info, request.start, request.end, request, files, (backend, frame_fps, limits))


def probe(src: VideoSource, *, frame_fps: float = 1.0, limits: MediaLimits | None = None) -> VideoInfo:
    """Facts about a video: size, duration, rate, rotation, codec. Decodes its first frame only.

    Raises:
        MediaError: The file cannot be used.
        MediaLimitError: It exceeds `limits`.
    """
    limits = limits or MediaLimits()
    with _open_reader(resolve_files(src, limits), "auto", frame_fps, limits) as reader:
        return reader.info


# -------------------------------------------------------------------------------------------------------------------


def _open_reader(src: Any, backend: Backend, frame_fps: float, limits: MediaLimits) -> Reader:
    """The reader for what `resolve_files` made of the user's source."""
    if backend not in get_args(Backend):
        raise ConfigError(f"backend must be one of {', '.join(get_args(Backend))}, not {backend!r}")
    if isinstance(src, Path):
        return from_folder(src, frame_fps, limits)
    if not isinstance(src, Source):
        return from_frames(src, frame_fps, limits)
    if src.animation() is not None:
        return from_animation(src, limits)
    if backend in ("auto", "pyav"):
        return PyavReader(src, limits)
    from vlm.media.backends import open_optional

    return open_optional(backend, src, limits)


def _request(
    info: VideoInfo,
    num_frames: int | None,
    fps: float | None,
    start: float | None,
    end: float | None,
    size: tuple[int, int] | int | None,
    sampling: Sampling,
    snap: Snap,
    limits: MediaLimits,
) -> Request:
    """Everything that can be refused before a frame is decoded is refused here."""
    if snap not in get_args(Snap):
        raise ConfigError(f"snap must be one of {', '.join(get_args(Snap))}, not {snap!r}")
    if info.duration is None:
        raise MediaError(
            info.source,
            "states no length, and its packets no times to measure it by; if it is a raw stream, put it into an mp4 or mkv first",
        )
    shape = resolve_size(size)
    if shape is not None:
        limits.check_pixels(info.source, shape[1], shape[0])
    first, last = resolve_window(info.source, info.duration, start, end)
    limits.check_frames(info.source, count_times(first, last, num_frames=num_frames, fps=fps, rule=sampling))
    times = None
    if num_frames is not None or fps is not None:
        times = sample_times(first, last, num_frames=num_frames, fps=fps, rule=sampling)
    return Request(times, first, last, shape, snap)


def _limited(reader: Reader, request: Request, limits: MediaLimits) -> Generator[FrameAt, None, None]:
    with closing(reader.frames(request)) as frames:
        for count, item in enumerate(frames, start=1):
            limits.check_frames(reader.info.source, count)
            yield item


def _collect(reader: Reader, request: Request, limits: MediaLimits) -> tuple[np.ndarray, np.ndarray]:
    """All frames of a request in one array, allocated once and only after its size was checked."""
    name = reader.info.source
    height, width = request.size or (reader.info.height, reader.info.width)
    expected = len(request.times) if request.times is not None else 0
    limits.check_decoded(name, max(expected, 1) * height * width * 3)
    out = np.empty((expected, height, width, 3), dtype=np.uint8)
    spare: list[np.ndarray] = []
    times: list[float] = []
    with closing(_limited(reader, replace(request, size=(height, width)), limits)) as stream:
        for frame, seconds in stream:
            if len(times) < expected:
                out[len(times)] = frame
            else:
                spare.append(frame)
                limits.check_decoded(name, len(spare) * frame.nbytes)
            times.append(seconds)
    if not times:
        raise MediaError(name, f"holds no frame between {request.start:.3f} and {request.end:.3f} s")
    frames = np.stack(spare) if spare else out[: len(times)]
    return frames, np.asarray(times, dtype=np.float64)


def _stack(batch: list[FrameAt]) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([frame for frame, _ in batch]), np.asarray([time for _, time in batch], dtype=np.float64)


def _load_sound(files: Any, info: VideoInfo, request: Request, rate: int | None, limits: MediaLimits) -> Audio | None:
    if rate is None or not info.has_audio:
        return None
    try:
        return read_audio(files, rate, request.start, request.end, limits, info.start)
    except MediaLimitError:
        raise
    except MediaError as error:  # the track ends before the window, or nothing decodes it: the pictures are good
        warnings.warn(MediaWarning(f"{info.source}: {error.cause}; only its pictures are used"), stacklevel=3)
        return None
