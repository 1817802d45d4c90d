"""Write frames (and sound) as an H.264 mp4 whose frame times are exact."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm.errors import ConfigError
from vlm.media.types import Audio

if TYPE_CHECKING:
    from av.container import OutputContainer

_SLOWEST, _FASTEST = 1 / 3600 - 1e-9, 1000  # frames per second that mp4 and x264 keep exactly
_SAMPLES_PER_FRAME = 1024  # of AAC


def write_video(
    path: str | Path,
    frames: np.ndarray | Iterable[np.ndarray],
    *,
    fps: float,
    audio: Audio | None = None,
    crf: int = 23,
    preset: str = "veryfast",
    gop: int | None = None,
) -> Path:
    """Encode frames as H.264 (yuv420p, mp4, index at the front), with an optional AAC sound track.

    Frame i is shown at exactly i / fps seconds. A temporary file is renamed at the end, so a crash leaves no half file.

    Args:
        path: Target, normally ending in ``.mp4``.
        frames: uint8 [T, H, W, 3], or an iterable of uint8 [H, W, 3] (constant memory). H and W must be even.
        fps: Frames per second; fractional rates such as 29.97 are kept as close as 1/90000 s allows.
        audio: Sound; its `start` shifts it against the frames (not negative).
        crf: Quality, 0 (lossless) to 51 (worst).
        preset: Speed preset of x264.
        gop: Largest distance between keyframes in frames; None leaves it to the encoder.

    Returns:
        `path` as a `Path`.

    Raises:
        ConfigError: Frames of a shape or type that cannot be encoded, an impossible rate, or a missing folder.
    """
    import av

    if not (isinstance(fps, Real) and _SLOWEST <= fps <= _FASTEST):
        raise ConfigError(f"fps must be a number from 1/3600 (a frame an hour) to {_FASTEST}, not {fps!r}")
    path = Path(path)
    if not path.parent.is_dir():
        raise ConfigError(f"{path} cannot be written: there is no folder {path.parent}; create it first")
    partial = path.with_name(f".{path.name}.partial")
    try:
        with av.open(str(partial), "w", format="mp4", options={"movflags": "faststart"}) as container:
            _Writer(container, fps, audio, {"crf": str(crf), "preset": preset}, gop).write(frames)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


class _Writer:
    """Encodes into one open container, interleaving sound and pictures."""

    def __init__(
        self, container: OutputContainer, fps: float, audio: Audio | None, options: dict[str, str], gop: int | None
    ) -> None:
        self._container = container
        slow = fps < 1  # then the time between frames is the number to keep
        self._rate = 1 / Fraction(1 / fps).limit_denominator(1001) if slow else Fraction(fps).limit_denominator(1001)
        self._audio = audio
        self._options = options
        self._gop = gop
        self._written = 0  # samples of sound

    def write(self, frames: Iterable[np.ndarray]) -> None:
        from av import VideoFrame

        video: Any = None
        sound: Any = None
        for index, array in enumerate(frames):
            if video is None:
                video = self._video_stream(array)
                sound = self._sound_stream() if self._audio is not None else None
            self._check(array, index, video)
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            frame.pts, frame.time_base = index, 1 / self._rate
            self._container.mux(video.encode(frame))
            if sound is not None:
                self._write_sound(sound, float((index + 1) / self._rate))
        if video is None:
            raise ConfigError("write_video needs at least one frame")
        self._container.mux(video.encode(None))
        if sound is not None:
            self._write_sound(sound, float("inf"))
            self._container.mux(sound.encode(None))

    def _video_stream(self, first: np.ndarray) -> Any:
        if first.ndim != 3:
            raise ConfigError(f"a frame must be uint8 [H, W, 3], not {first.dtype} {list(first.shape)}")
        height, width = first.shape[:2]
        if height % 2 or width % 2:
            raise ConfigError(f"frames of {width} × {height} pixels cannot be encoded: width and height must be even")
        stream: Any = self._container.add_stream("libx264", rate=self._rate, options=dict(self._options))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = 1 / self._rate
        if self._gop is not None:
            stream.codec_context.gop_size = self._gop
        return stream

    def _sound_stream(self) -> Any:
        audio = self._audio
        if audio is None or audio.samples.ndim != 2 or audio.samples.shape[0] not in (1, 2):
            raise ConfigError("audio must hold float32 samples [C, S] with 1 or 2 channels")
        stream: Any = self._container.add_stream("aac", rate=audio.rate)
        stream.layout = "mono" if audio.samples.shape[0] == 1 else "stereo"
        stream.format = "fltp"
        return stream

    def _check(self, array: np.ndarray, index: int, video: Any) -> None:
        wanted = (video.height, video.width, 3)
        if array.dtype != np.uint8 or array.shape != wanted:
            found = f"{array.dtype} {list(array.shape)}"
            raise ConfigError(f"frame {index} is {found}, expected uint8 {list(wanted)} like the first frame")

    def _write_sound(self, stream: Any, until: float) -> None:
        """Encode samples up to the time `until` in seconds."""
        from av import AudioFrame

        audio = self._audio
        if audio is None:
            return
        layout = "mono" if audio.samples.shape[0] == 1 else "stereo"
        while self._written < audio.samples.shape[1] and audio.start + self._written / audio.rate < until:
            part = audio.samples[:, self._written : self._written + _SAMPLES_PER_FRAME].astype(np.float32)
            frame = AudioFrame.from_ndarray(np.ascontiguousarray(part), format="fltp", layout=layout)
            frame.sample_rate = audio.rate
            frame.pts = round(audio.start * audio.rate) + self._written
            frame.time_base = Fraction(1, audio.rate)
            self._container.mux(stream.encode(frame))
            self._written += part.shape[1]
