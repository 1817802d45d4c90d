"""What the media package hands out: `Video`, `Audio` and the `VideoInfo` of a file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Audio:
    """A waveform.

    Attributes:
        samples: float32 [C, S], nominally in [-1, 1].
        rate: Samples per second.
        start: Time of the first sample in seconds, on the same clock as `Video.timestamps`.
    """

    samples: np.ndarray
    rate: int
    start: float = 0.0

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return self.samples.shape[-1] / self.rate

    def mono(self) -> np.ndarray:
        """Mean of the channels, float32 [S]."""
        return self.samples.mean(axis=0, dtype=np.float32)


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video before its frames are decoded.

    Attributes:
        source: File name, or a description such as ``<1234 bytes>``.
        width: Width in pixels as shown, that is after rotation.
        height: Height in pixels as shown.
        duration: Length in seconds from presentation start to the end of the last frame; None if nobody knows.
        start: Container time in seconds of the presentation start. All other times of this package are relative to it.
        fps: Average frame rate; None if unknown. Only an estimate of density: times never come from it.
        num_frames: Estimated number of frames; None if unknown.
        codec: Name of the codec, e.g. ``h264``.
        rotation: Counter-clockwise degrees (0, 90, 180, 270) the decoder's picture is turned by to be shown upright.
        has_audio: True if there is a sound track.
        backend: Which reader decodes it.
    """

    source: str
    width: int
    height: int
    duration: float | None
    start: float
    fps: float | None
    num_frames: int | None
    codec: str
    rotation: int
    has_audio: bool
    backend: str


@dataclass(frozen=True)
class Video:
    """Sampled frames with their true times.

    Attributes:
        frames: uint8 [T, H, W, 3], RGB, upright.
        timestamps: float64 [T], presentation time in seconds of each frame; 0 is the presentation start of the video
            (the earlier of the first frame and the first audible sample, which is where a player's clock starts).
        duration: Length of the whole video in seconds.
        source: File name or description.
        audio: Sound of the same window if `audio_rate` was asked for and there is a track.
        info: Facts about the file.
        snap: "exact", or "keyframe" if the frames are the nearest earlier keyframes of the target times.
        start: Start of the requested window in seconds.
        end: End of the requested window in seconds.
    """

    frames: np.ndarray
    timestamps: np.ndarray
    duration: float
    source: str
    audio: Audio | None
    info: VideoInfo
    snap: str = "exact"
    start: float = 0.0
    end: float = 0.0

    def __len__(self) -> int:
        return len(self.frames)
