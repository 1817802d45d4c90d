"""Pictures composed into shots, and shots joined by hard cuts into videos whose every time is known exactly.

A `Clip` is a description: `Clip.render` draws any moment at any size, `Clip.write` makes a real H.264 file, and the questions
of `data_recipes.synth.smol_questions` are asked of the description, so truth never comes from pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_recipes.synth.backgrounds import Background
from data_recipes.synth.pictures import Name, by_id, load_rgba
from vlm.errors import ConfigError
from vlm.media import Audio, load_audio, write_video

PLACES = ("left", "middle", "right")
MOTIONS = ("still", "zoom in", "zoom out", "pan left", "pan right")
_ZOOM, _PAN = 0.12, 0.05  # growth of a picture and share of the frame's width, over a whole shot
_SOUND_RATE = 44_100
_TOP = 384  # longest side, pixels, of the pictures kept in memory


@dataclass(frozen=True)
class Item:
    """One picture in a shot.

    Attributes:
        name: What it shows.
        place: One of `PLACES`.
        colour: Its clear colour, if it has one.
        picture: Id of a stamp, or the path of a picture file that fills the frame; None for a thing known only by features.
        scale: Size within its box, 0..1.
        rise: Vertical shift, share of the frame's height (positive is up).
        class_id: ImageNet class, if it stands for one.
    """

    name: Name
    place: str
    colour: str | None = None
    picture: str | None = None
    scale: float = 1.0
    rise: float = 0.0
    class_id: int | None = None


@dataclass(frozen=True)
class Sound:
    """Something heard during a shot.

    Attributes:
        path: Sound file.
        start: Second of the clip at which it begins.
        text: The words, if it is speech.
        seconds: Its length.
    """

    path: Path
    start: float
    text: str | None
    seconds: float


@dataclass(frozen=True)
class Shot:
    """A stretch of video without a cut: ``start <= t < end`` in seconds."""

    start: float
    end: float
    items: tuple[Item, ...]
    background: Background
    motion: str = "still"
    sound: Sound | None = None


@dataclass(frozen=True)
class Clip:
    """Shots in order, without gaps.

    Attributes:
        shots: The first starts at 0.
        aspect: Width over height.
    """

    shots: tuple[Shot, ...]
    aspect: float = 4 / 3

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.shots[-1].end

    def shot_at(self, seconds: float) -> Shot:
        """The shot that is on at this moment; the last one at the very end."""
        return next((s for s in self.shots if seconds < s.end), self.shots[-1])

    def render(self, seconds: float, size: tuple[int, int]) -> np.ndarray:
        """Frame at a moment, uint8 ``[H, W, 3]``; a size of another aspect is the whole frame, stretched."""
        shot = self.shot_at(seconds)
        return render_shot(shot, (seconds - shot.start) / (shot.end - shot.start), size, aspect=self.aspect)

    def frames(self, fps: float, size: tuple[int, int]) -> Iterator[np.ndarray]:
        """Every frame, as `write` shows them."""
        return (self.render(i / fps, size) for i in range(round(self.duration * fps)))

    def write(self, path: str | Path, fps: float = 10.0, *, height: int = 240) -> Path:
        """Write a real H.264 file with its sound track. Cuts fall on frames if ``shot.start * fps`` are whole numbers."""
        size = (height, 2 * round(height * self.aspect / 2))
        return write_video(path, self.frames(fps, size), fps=fps, audio=self.audio())

    def audio(self, rate: int = _SOUND_RATE) -> Audio | None:
        """The sound track, mono at ``rate`` samples per second; None for a silent clip."""
        sounds = [s.sound for s in self.shots if s.sound is not None]
        if not sounds:
            return None
        track = np.zeros(round(self.duration * rate), np.float32)
        for sound in sounds:
            samples = load_audio(sound.path, rate=rate).samples.mean(0)
            first = round(sound.start * rate)
            part = samples[: max(0, len(track) - first)]
            track[first : first + len(part)] += part
        return Audio(np.clip(track, -1, 1)[None], rate)


def render_shot(shot: Shot, progress: float, size: tuple[int, int], *, aspect: float) -> np.ndarray:
    """Frame of a shot at ``progress`` in 0..1, uint8 ``[H, W, 3]``.

    Raises:
        ConfigError: A thing in the shot has no picture.
    """
    canvas = _background(shot.background, size).astype(np.float32)
    for item in shot.items:
        if item.picture is None:
            raise ConfigError(f"{item.name.phrase!r} has no picture, so its shot can be had as features only")
        if item.picture not in by_id():
            canvas[:] = _photograph(item.picture, size)
            continue
        _paste(canvas, item, _box(shot.items, item), shot.motion, progress, aspect)
    return canvas.round().astype(np.uint8)


@lru_cache(maxsize=8)
def _background(background: Background, size: tuple[int, int]) -> np.ndarray:
    return background.render(size)


@lru_cache(maxsize=256)
def _stamp(picture: str) -> np.ndarray:
    return load_rgba(by_id()[picture].path, longest=_TOP)


@lru_cache(maxsize=8)
def _photograph(path: str, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BICUBIC, reducing_gap=3.0))


def _box(items: tuple[Item, ...], item: Item) -> tuple[float, float, float]:
    """Centre (share of the width), and largest width and height (shares of the frame) of an item beside its neighbours."""
    if len(items) == 1:
        centre = {"left": 0.23, "middle": 0.5, "right": 0.77}[item.place]
        return (centre, 0.9, 0.88) if item.place == "middle" else (centre, 0.44, 0.75)
    if len(items) == 2:
        return {"left": 0.24, "middle": 0.5, "right": 0.76}[item.place], 0.44, 0.72
    return {"left": 1 / 6, "middle": 0.5, "right": 5 / 6}[item.place], 0.31, 0.66


def _paste(
    canvas: np.ndarray, item: Item, box: tuple[float, float, float], motion: str, progress: float, aspect: float
) -> None:
    """Lay a stamp over ``canvas`` (float32 ``[H, W, 3]``, changed in place) by its alpha."""
    from PIL import Image

    height, width = canvas.shape[:2]
    stamp = _stamp(str(item.picture))
    centre, box_width, box_height = box
    fit = item.scale * min(box_width * aspect / stamp.shape[1], box_height / stamp.shape[0])
    growth = {"zoom in": progress, "zoom out": 1 - progress}.get(motion, 0.0)
    fit *= (1 + _ZOOM * growth) / (1 + _ZOOM)
    shift = {"pan left": 0.5 - progress, "pan right": progress - 0.5}.get(motion, 0.0) * _PAN
    shape = max(1, round(fit * stamp.shape[0] * height)), max(1, round(fit * stamp.shape[1] * width / aspect))
    image = np.asarray(Image.fromarray(stamp).resize(shape[::-1], Image.Resampling.BICUBIC), np.float32)
    top = round((0.5 - item.rise) * height - shape[0] / 2)
    left = round((centre + shift) * width - shape[1] / 2)
    rows, columns = _overlap(top, shape[0], height), _overlap(left, shape[1], width)
    part = image[rows[1], columns[1]]
    alpha = part[..., 3:] / 255
    target = canvas[rows[0], columns[0]]
    target += (part[..., :3] - target) * alpha


def _overlap(first: int, length: int, limit: int) -> tuple[slice, slice]:
    """Slices of the canvas and of the picture where ``first .. first + length`` lies within ``0 .. limit``."""
    low, high = max(0, first), min(limit, first + length)
    return slice(low, max(low, high)), slice(low - first, max(low, high) - first)
