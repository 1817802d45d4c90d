"""Content parts -> prepared media: pixels or features, frame edges in seconds, shots. Used by the processor only."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vlm.encoders.audio import log_mel
from vlm.errors import ConfigError
from vlm.media import Audio, Video, VideoPlan, load_audio, load_image, load_video, plan_video
from vlm.messages import needed
from vlm.time import frame_edges
from vlm.time.shots import find_shots

DEFAULT_FRAMES = 64
STATES_PER_SECOND = 50  # of the Whisper encoder
_PLANNED = set(inspect.signature(plan_video).parameters)
VIDEO_OPTIONS = tuple(inspect.signature(load_video).parameters)[1:]  # what a call may say about videos given as paths
_SLACK = 1 / STATES_PER_SECOND  # s; sound that misses a window by less than one state covers it


@dataclass
class Medium:
    """One prepared medium of a conversation.

    Attributes:
        kind: ``image``, ``video``, ``audio`` or ``transcript``.
        ids: Token ids it occupies in the text (placeholders and time words).
        duration: Seconds.
        num_frames: Frames (images and videos) or encoder states kept (audio).
        edges: ``[T+1]`` seconds; frame (or encoder state) i covers ``edges[i]..edges[i+1]``.
        spans: ``[N, 2]`` seconds covered by each visual token.
        segments: Frames per shot, for pooling mode ``segments``.
        pixel_values: ``[T, 3, H, W]``, normalised when looked at, or vision_features ``[T, P, E]``.
        mel: ``[W, mel, frames]`` log-mel spectrograms of the sound, window by window.
        windows: Encoder states to keep of each window.
        start: Seconds by which times of this medium are shifted (a window that does not begin at 0).
        frames: ``uint8 [T, H, W, 3]``, what the vision tower looks at; None if they are decoded later.
        timestamps: ``[T]`` seconds of the frames, counted from the start of the file.
        shape: Width of the picture by its height, as shown on a screen (the tower may see it squeezed into a square).
    """

    kind: str
    ids: list[int] = field(default_factory=list)
    duration: float = 0.0
    num_frames: int = 0
    edges: np.ndarray = field(default_factory=lambda: np.zeros(1))
    spans: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    segments: list[int] | None = None
    pixel_values: Pixels | None = None
    vision_features: torch.Tensor | None = None
    mel: torch.Tensor | None = None
    windows: list[int] = field(default_factory=list)
    start: float = 0.0
    frames: np.ndarray | None = None
    timestamps: np.ndarray | None = None
    shape: float = 1.0


def normalise(frames: np.ndarray, pixels: dict[str, Any]) -> torch.Tensor:
    """``uint8 [T, H, W, 3]`` -> float32 ``[T, 3, S, S]``: resized to the tower's square input, then ``(x/255 - mean) / std``."""
    size = int(pixels["image_size"])
    x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    if x.shape[-2:] != (size, size):
        x = torch.nn.functional.interpolate(
            x, (size, size), mode="bicubic", antialias=True, align_corners=False
        ).clamp_(0, 255)
    mean = torch.tensor(list(pixels["image_mean"])).view(1, 3, 1, 1)
    std = torch.tensor(list(pixels["image_std"])).view(1, 3, 1, 1)
    return (x / 255.0 - mean) / std


class Pixels:
    """Frames of one or more media, normalised when they are looked at: a float is four times a byte.

    Args:
        pictures: ``uint8 [T, H, W, 3]`` each, or a plan to decode such.
        pixels: What `normalise` needs.
    """

    def __init__(self, pictures: list[np.ndarray | VideoPlan], pixels: dict[str, Any]) -> None:
        self.pictures, self.pixels = pictures, pixels

    def __len__(self) -> int:
        return sum(len(p) for p in self.pictures)

    def __getitem__(self, rows: slice) -> torch.Tensor:
        """Rows ``[n, 3, S, S]``, float32."""
        wanted = range(len(self))[rows]
        found, first = [], 0
        for pictures in self.pictures:
            inside = [row - first for row in (wanted.start, wanted.stop)]
            some = pictures[max(0, inside[0]) : max(0, inside[1])]
            found += [normalise(some, self.pixels)] if len(some) else []
            first += len(pictures)
        size = int(self.pixels["image_size"])
        return torch.cat(found) if found else torch.zeros(0, 3, size, size)

    @staticmethod
    def joined(parts: list[Pixels]) -> Pixels:
        """Those of several media, one after the other."""
        return Pixels([picture for part in parts for picture in part.pictures], parts[0].pixels)


def prepare_video(
    part: dict[str, Any],
    pixels: dict[str, Any],
    pooling: dict[str, Any],
    options: dict[str, Any],
    *,
    planned: bool = False,
) -> Medium:
    """A video part: a `Video`, anything `load_video` takes, or precomputed ``features`` with ``timestamps``, ``duration``
    (and ``segments``, ``edges``). With ``planned`` frames of a file are decoded when they are looked at, where that is possible: not if
    shots must be found first."""
    if "features" in part:
        return _from_features(part, pooling)
    source = part.get("video", part.get("path", part.get("url")))
    if source is None:
        raise ConfigError(
            f"a video part needs 'video' (a path, bytes, frames or a Video) or 'features'; got keys {sorted(part)}"
        )
    if not isinstance(source, Video):
        own = {k: part[k] for k in ("num_frames", "fps", "start", "end", "frame_fps") if part.get(k) is not None}
        replaced = {"num_frames", "fps"} if own.keys() & {"num_frames", "fps"} else set()
        wanted = {k: v for k, v in options.items() if v is not None and k not in replaced} | own
        if "fps" not in wanted:
            wanted.setdefault("num_frames", DEFAULT_FRAMES)
        plan = None
        if planned and pooling["mode"] != "segments" and wanted.keys() <= _PLANNED:
            plan = plan_video(source, **wanted)
        source = plan or load_video(source, **wanted)
    return video_medium(source, pixels, pooling)


def video_medium(video: Video | VideoPlan, pixels: dict[str, Any], pooling: dict[str, Any]) -> Medium:
    """A loaded or planned video -> `Medium`; times become relative to the window that was asked for.

    Raises:
        ConfigError: The window has no length (a `Video` made by hand without ``end``).
    """
    duration = video.end - video.start
    if not duration > 0:
        raise ConfigError(
            f"the video {video.info.source!r} has start={video.start:g} and end={video.end:g} s, a window without length; "
            "give Video(..., end=seconds)"
        )
    timestamps = np.clip(video.timestamps - video.start, 0.0, duration)
    pictures, segments = video if isinstance(video, VideoPlan) else video.frames, None
    frames = None if isinstance(pictures, VideoPlan) else pictures
    if frames is not None and pooling["mode"] == "segments":
        segments = find_shots(frames, **pooling.get("shots", {}))
    return Medium(
        kind="video",
        duration=duration,
        num_frames=len(timestamps),
        edges=frame_edges(timestamps, duration),
        segments=segments,
        pixel_values=Pixels([pictures], pixels),
        start=video.start,
        frames=frames,
        timestamps=video.timestamps,
        shape=video.info.width / video.info.height,
    )


def _from_features(part: dict[str, Any], pooling: dict[str, Any]) -> Medium:
    features = _tensor(part["features"])
    duration, given = needed(part, "duration", "timestamps")
    duration, timestamps = float(duration), np.asarray(given, dtype=np.float64)
    if len(timestamps) != len(features):
        raise ConfigError(f"a video part has {len(features)} frames of features but {len(timestamps)} timestamps")
    segments = list(needed(part, "segments")[0]) if pooling["mode"] == "segments" else None
    edges = np.asarray(part["edges"]) if "edges" in part else frame_edges(timestamps, duration)
    return Medium(
        kind="video",
        duration=duration,
        num_frames=len(features),
        edges=edges,
        segments=segments,
        vision_features=features,
        timestamps=timestamps,
    )


def _tensor(features: Any) -> torch.Tensor:
    """A tensor as it is; an array as a copy (memory-mapped ones are read-only)."""
    return features if isinstance(features, torch.Tensor) else torch.from_numpy(np.array(features))


def prepare_images(part: dict[str, Any], pixels: dict[str, Any]) -> Medium:
    """An image part: a path, bytes, a PIL image or an array ``uint8 [H, W, 3]``; or precomputed ``features`` ``[P, E]``."""
    if "features" in part:
        features = _tensor(part["features"])[None]
        return Medium(kind="image", num_frames=1, vision_features=features)
    source = part.get("image", part.get("path", part.get("url")))
    if source is None:
        raise ConfigError(f"an image part needs 'image' (a path, bytes or an array); got keys {sorted(part)}")
    array = load_image(source)
    return Medium(kind="image", num_frames=1, pixel_values=Pixels([array[None]], pixels), frames=array[None])


def prepare_audio(part: dict[str, Any], ears: dict[str, Any]) -> Medium:
    """An audio part for the feature path: log-mel by windows, and how many encoder states of each are really sound.

    Sound of a video says where it lies in the window that times refer to: ``offset`` (of its first sample) and ``duration`` (of the
    window), both in seconds.
    """
    source = part.get("audio", part.get("path", part.get("url")))
    if source is None:
        raise ConfigError(f"an audio part needs 'audio' (a path or an Audio); got keys {sorted(part)}")
    audio = source if isinstance(source, Audio) else load_audio(source, rate=int(ears["rate"]))
    check_rate(audio, ears)
    size = round(float(ears.get("window", 30.0)) * audio.rate)
    wave, stride = audio.mono(), int(ears["stride"])
    firsts = range(0, max(1, wave.shape[-1]), size)
    pieces = [wave[first : first + size] for first in firsts]
    mels = [
        log_mel(piece, rate=audio.rate, num_mel_bins=int(ears["num_mel_bins"]), seconds=size / audio.rate)
        for piece in pieces
    ]
    windows = [max(1, int(np.ceil(len(piece) / audio.rate * STATES_PER_SECOND / stride))) for piece in pieces]
    offset, duration = float(part.get("offset", 0.0)), float(part.get("duration", audio.duration))
    if max(abs(offset), abs(duration - audio.duration)) < _SLACK:
        offset, duration = 0.0, audio.duration
    states = [np.arange(n) * stride / STATES_PER_SECOND + f / audio.rate for f, n in zip(firsts, windows, strict=True)]
    return Medium(
        kind="audio",
        num_frames=sum(windows),
        edges=np.concatenate([*states, [audio.duration]]) + offset,
        windows=windows,
        mel=torch.stack(mels),
        duration=duration,
        start=audio.start - offset,
    )


def check_rate(audio: Audio, ears: dict[str, Any]) -> None:
    """Refuse a loaded `Audio` that the ears would hear at the wrong speed.

    Raises:
        ConfigError: Names both rates.
    """
    if audio.rate != int(ears["rate"]):
        raise ConfigError(
            f"audio has {audio.rate} samples per second, the encoder wants {ears['rate']}; load it with that rate"
        )
