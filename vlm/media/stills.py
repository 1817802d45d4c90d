"""Videos that are not video files: arrays, lists of frames, folders of images, animated GIF / WebP / PNG."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from vlm.errors import ConfigError, MediaError, TruncatedMediaWarning
from vlm.media.convert import Scaler, on_white, resize
from vlm.media.images import load_image, open_image
from vlm.media.limits import Deadline, MediaLimits
from vlm.media.pyav import FrameAt, Request
from vlm.media.source import Source
from vlm.media.types import VideoInfo

_IMAGES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class StillsReader:
    """Serves frames that exist one by one, each with the time from which it is shown. A context manager.

    Args:
        name: For messages.
        starts: float64 [T], ascending, second from which each frame is shown; the first is 0.
        end: Second at which the last frame stops being shown.
        get: Index -> uint8 [H, W, 3]; called with ascending indices.
        codec: What to call the format.
        limits: Checked for each frame.
        deadline: Likewise; None begins one now.
    """

    def __init__(
        self,
        name: str,
        starts: np.ndarray,
        end: float,
        get: Callable[[int], np.ndarray],
        codec: str,
        limits: MediaLimits,
        deadline: Deadline | None = None,
    ) -> None:
        self.deadline = deadline or Deadline(limits.max_wall_seconds)
        self._open = ExitStack()
        limits.check_source_frames(name, len(starts))
        limits.check_seconds(name, end)
        self._name = name
        self._starts = starts
        self._get = get
        self._limits = limits
        height, width = get(0).shape[:2]
        self.info = VideoInfo(
            source=name,
            width=width,
            height=height,
            duration=end,
            start=0.0,
            fps=len(starts) / end if end > 0 else None,
            num_frames=len(starts),
            codec=codec,
            rotation=0,
            has_audio=False,
            backend="frames",
        )

    def __enter__(self) -> StillsReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def close_with(self, stack: ExitStack) -> None:
        """Hand over what has to be closed when the reader is left."""
        self._open.push(stack)

    def frames(self, request: Request) -> Generator[FrameAt, None, None]:
        """Yield (uint8 [H, W, 3], seconds) in order. Every still is a keyframe, so `snap` changes nothing."""
        size = request.size or (self.info.height, self.info.width)
        scaler = Scaler(self._name, size, self._limits)
        for index in self._indices(request):
            self.deadline.check(self._name)
            yield resize(self._get(int(index)), scaler), float(self._starts[index])

    def times(self, request: Request) -> np.ndarray:
        """Times of the frames that `frames` yields, in seconds."""
        found: np.ndarray = self._starts[self._indices(request)]
        return found

    def _indices(self, request: Request) -> np.ndarray:
        if request.times is not None:
            return np.maximum(np.searchsorted(self._starts, request.times + 1e-6, side="right") - 1, 0)
        first = max(int(np.searchsorted(self._starts, request.start + 1e-6, side="right")) - 1, 0)
        return np.arange(first, max(int(np.searchsorted(self._starts, request.end - 1e-6)), first + 1))


def from_frames(frames: Any, frame_fps: float, limits: MediaLimits) -> StillsReader:
    """Reader over an array uint8 [T, H, W, 3] or a sequence of T arrays uint8 [H, W, 3] (or PIL images).

    Raises:
        MediaError: Not frames of that shape and type.
    """
    if not hasattr(frames, "__len__") or not hasattr(frames, "__getitem__") or isinstance(frames, Mapping):
        raise MediaError(repr(type(frames)), "is neither a path, bytes, a file object, nor a sequence of frames")
    if getattr(frames, "shape", None) == ():
        raise MediaError("<array>", "holds a single number, expected uint8 [T, H, W, 3]")
    count = len(frames)
    name = f"<{count} frames>"
    if count == 0:
        raise MediaError(name, "is empty")

    def get(index: int) -> np.ndarray:
        frame = np.asarray(frames[index])
        if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != np.uint8:
            raise MediaError(name, f"frame {index} is {frame.dtype} {list(frame.shape)}, expected uint8 [H, W, 3]")
        limits.check_pixels(name, frame.shape[1], frame.shape[0])
        return frame

    return StillsReader(name, _regular(count, frame_fps), count / frame_fps, get, "frames", limits)


def from_folder(folder: Path, frame_fps: float, limits: MediaLimits) -> StillsReader:
    """Reader over the images of a folder in natural order (``img2`` before ``img10``).

    Raises:
        MediaError: The folder holds no image.
    """
    paths = sorted((p for p in folder.iterdir() if p.suffix.lower() in _IMAGES and p.is_file()), key=_natural)
    if not paths:
        raise MediaError(str(folder), "is a folder without images")

    def get(index: int) -> np.ndarray:
        return load_image(paths[index], limits=limits)

    return StillsReader(str(folder), _regular(len(paths), frame_fps), len(paths) / frame_fps, get, "images", limits)


def from_animation(source: Source, limits: MediaLimits) -> StillsReader:
    """Reader over an animated GIF, WebP or PNG, with the file's own frame durations.

    Raises:
        MediaError: A still image, or damaged in its first frame.

    Warns:
        TruncatedMediaWarning: A later frame is damaged; the frames before it are used.
    """
    kind = source.animation() or "image"
    deadline = Deadline(limits.max_wall_seconds)
    with open_image(source, limits) as image:
        if not getattr(image, "is_animated", False):
            raise MediaError(source.name, f"is a still image ({kind}), not a video; use load_image")
        ends = np.cumsum(_durations(image, source, limits, deadline))
    starts = np.concatenate([[0.0], ends[:-1]])
    with ExitStack() as stack:
        # Opened anew: a frame that claims a huge canvas leaves Pillow with that canvas, even after it was refused.
        image = stack.enter_context(open_image(source, limits))

        def get(index: int) -> np.ndarray:
            return _animation_frame(image, index, source, limits)

        reader = StillsReader(source.name, starts, float(ends[-1]), get, kind.lower(), limits, deadline)
        reader.close_with(stack.pop_all())
        return reader


def _durations(image: Any, source: Source, limits: MediaLimits, deadline: Deadline) -> list[float]:
    """Seconds each frame is shown, up to the first damaged one; as in browsers, 0.1 s where the file says about 0."""
    durations: list[float] = []
    try:
        while True:
            limits.check_source_frames(source.name, len(durations) + 1)
            deadline.check(source.name)
            image.seek(len(durations))
            limits.check_pixels(source.name, *image.size)  # every frame may enlarge the canvas
            image.load()
            milliseconds = float(image.info.get("duration", 0) or 0)
            durations.append(milliseconds / 1000 if milliseconds > 10 else 0.1)
    except EOFError:
        pass  # Pillow's way of saying that this was the last frame
    except MediaError:
        raise
    except Exception as error:  # of any type, see images.py
        if not durations:
            raise MediaError(source.name, f"its first frame is damaged ({error})") from error
        text = f"{source.name}: is damaged after frame {len(durations)} ({error}); only the frames before are used"
        warnings.warn(TruncatedMediaWarning(text), stacklevel=2)
    if not durations:
        raise MediaError(source.name, "holds no frame")
    return durations


def _animation_frame(image: Any, index: int, source: Source, limits: MediaLimits) -> np.ndarray:
    try:
        image.seek(index)
        limits.check_pixels(source.name, *image.size)
        return on_white(np.asarray(image.convert("RGBA")))
    except MediaError:
        raise
    except Exception as error:  # of any type, see images.py
        raise MediaError(source.name, f"frame {index} is damaged: {error}") from error


def _regular(count: int, frame_fps: float) -> np.ndarray:
    if not (np.isfinite(frame_fps) and frame_fps > 0):
        raise ConfigError(f"frame_fps must be a positive number, not {frame_fps}")
    return np.arange(count, dtype=np.float64) / frame_fps


def _natural(path: Path) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", path.name)]
