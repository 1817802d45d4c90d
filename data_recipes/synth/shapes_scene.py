"""A clip of the shapes world described analytically, so that any instant can be drawn and every true time is known exactly.

Times are seconds from the start of the clip, positions and radii are fractions of the frame's side. Every event lies on the scene's
frame grid (a multiple of ``1 / fps``): what a question calls "from 3.0 to 7.5" is what the frames of the written file show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_recipes.synth.shapes_render import COLOURS, DIGITS, Background, draw, draw_background
from vlm.errors import ConfigError
from vlm.media import Audio, Video, VideoInfo, write_video
from vlm.time import Span

MOTIONS: tuple[str, ...] = ("still", "linear", "bounce", "circular", "collide")
SOUND_RATE = 16_000  # samples per second of the beeps


@dataclass(frozen=True)
class Track:
    """Where a thing is: straight lines between knots, or a circle.

    Attributes:
        motion: One of `MOTIONS`.
        knots: ``(second, x, y)`` in order of time; before the first and after the last the thing rests.
        orbit: ``(radius, seconds per turn, starting angle)`` around the first knot, or None.
    """

    motion: str
    knots: tuple[tuple[float, float, float], ...]
    orbit: tuple[float, float, float] | None = None

    def at(self, t: float) -> tuple[float, float]:
        """Centre ``(x, y)`` at ``t`` seconds."""
        if self.orbit is not None:
            radius, period, phase = self.orbit
            angle = phase + 2 * np.pi * t / period
            return self.knots[0][1] + radius * float(np.cos(angle)), self.knots[0][2] + radius * float(np.sin(angle))
        seconds = [knot[0] for knot in self.knots]
        x, y = (float(np.interp(t, seconds, [knot[axis] for knot in self.knots])) for axis in (1, 2))
        return x, y


@dataclass(frozen=True)
class Thing:
    """One shape or digit.

    Attributes:
        shape: A name of `SHAPES`, or a digit.
        colour: Name of its (first) colour.
        visible: When it can be seen: ``start <= t < end``.
        track: Where it is.
        radius: Of the circumscribed circle.
        angle: Rotation, radians.
        shade: Offset to the nominal RGB colour.
        turns: ``(second, colour)`` of its one colour change, or None.
    """

    shape: str
    colour: str
    visible: Span
    track: Track
    radius: float
    angle: float = 0.0
    shade: tuple[int, int, int] = (0, 0, 0)
    turns: tuple[float, str] | None = None

    @property
    def is_digit(self) -> bool:
        """Whether this is a digit (a needle) and not a shape."""
        return self.shape in DIGITS

    def colour_at(self, t: float) -> str:
        """Name of its colour at ``t`` seconds."""
        return self.turns[1] if self.turns is not None and t >= self.turns[0] else self.colour


@dataclass(frozen=True)
class Appearance:
    """One thing in one colour: what questions speak about."""

    shape: str
    colour: str
    span: Span
    thing: Thing

    @property
    def noun(self) -> str:
        """For example "red circle"."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Beep:
    """A tone in the audio track."""

    span: Span
    hertz: float


def tone(count: int, hertz: float, rate: int = SOUND_RATE) -> np.ndarray:
    """``count`` samples of a beep, float32, at half of full scale, faded in and out over 10 ms."""
    seconds = np.arange(count, dtype=np.float32) / rate
    envelope = np.minimum(1.0, np.minimum(seconds, seconds[::-1]) / 0.01)
    return (0.5 * envelope * np.sin(2 * np.pi * hertz * seconds)).astype(np.float32)


@dataclass(frozen=True)
class Scene:
    """A whole clip. Item times are exact; pictures are drawn on demand.

    Attributes:
        duration: Seconds.
        fps: Frames per second of the written file.
        size: Side of the written frames, pixels.
        background: What lies behind the things.
        things: Shapes and digits, drawn in this order.
        beeps: Tones in the audio track.
        collision: ``(second, first thing, second thing)``, or None.
    """

    duration: float
    fps: float
    size: int
    background: Background
    things: tuple[Thing, ...]
    beeps: tuple[Beep, ...] = ()
    collision: tuple[float, Thing, Thing] | None = None

    @property
    def shapes(self) -> list[Thing]:
        """The things that are not digits."""
        return [thing for thing in self.things if not thing.is_digit]

    @property
    def digits(self) -> list[Thing]:
        """The things that are digits."""
        return [thing for thing in self.things if thing.is_digit]

    def appearances(self) -> list[Appearance]:
        """Shapes by colour, in order of their start; those that start together in the order of the scene."""
        found: list[Appearance] = []
        for thing in self.shapes:
            change = thing.turns[0] if thing.turns else thing.visible.end
            found.append(Appearance(thing.shape, thing.colour, Span(thing.visible.start, change), thing))
            if thing.turns:
                found.append(Appearance(thing.shape, thing.turns[1], Span(change, thing.visible.end), thing))
        return sorted(found, key=lambda appearance: appearance.span.start)

    def render(self, t: float, size: int | None = None) -> np.ndarray:
        """Draw the instant ``t`` (seconds) as uint8 ``[size, size, 3]``."""
        frame = draw_background(self.background, size or self.size).copy()
        for thing in self.things:
            if thing.visible.start <= t < thing.visible.end:
                nominal, shade = COLOURS[thing.colour_at(t)], thing.shade
                red, green, blue = (min(max(c + s, 0), 255) for c, s in zip(nominal, shade, strict=True))
                draw(frame, thing.shape, (red, green, blue), *thing.track.at(t), thing.radius, thing.angle)
        return frame

    def frames(self, times: Sequence[float] | np.ndarray, size: int | None = None) -> np.ndarray:
        """Draw several instants as uint8 ``[T, size, size, 3]``."""
        return np.stack([self.render(float(t), size) for t in times])

    def sample_times(self, num_frames: int) -> np.ndarray:
        """Timestamps (float64 ``[num_frames]``, s) of the frames on screen at the centres of equal parts of the clip."""
        centres = (np.arange(num_frames) + 0.5) * self.duration / num_frames
        return np.floor(centres * self.fps + 1e-6) / self.fps

    def video(self, num_frames: int, size: int | None = None, *, sound_rate: int | None = None) -> Video:
        """The clip as if read from its file: ``num_frames`` frames, drawn and not decoded.

        Args:
            num_frames: How many frames to sample at the centres of equal parts.
            size: Side in pixels; the scene's own by default.
            sound_rate: Rate of the audio track in Hz; none by default.
        """
        times = self.sample_times(num_frames)
        return Video(
            frames=self.frames(times, size),
            timestamps=times,
            duration=self.duration,
            source="shapes",
            audio=self.sound(sound_rate) if sound_rate else None,
            info=self._info(size or self.size),
            start=0.0,
            end=self.duration,
        )

    def sound(self, rate: int = SOUND_RATE) -> Audio:
        """The audio track: silence and beeps, float32 ``[1, duration * rate]``."""
        samples = np.zeros(round(self.duration * rate), np.float32)
        for beep in self.beeps:
            first, last = round(beep.span.start * rate), round(beep.span.end * rate)
            samples[first:last] += tone(last - first, beep.hertz, rate)[: len(samples) - first]
        return Audio(samples[None, :], rate)

    def write(self, path: str | Path, *, size: int | None = None, sound: bool | None = None) -> Path:
        """Write the clip as a real H.264 file (with AAC sound if there are beeps, or as ``sound`` says).

        Raises:
            ConfigError: The clip is shorter than one frame.
        """
        count = round(self.duration * self.fps)
        if count < 1:
            raise ConfigError(f"a clip of {self.duration} s at {self.fps} frames/s has no frame; make it longer")
        audio = self.sound() if (bool(self.beeps) if sound is None else sound) else None
        return write_video(Path(path), self._stream(count, size), fps=self.fps, audio=audio)

    def _stream(self, count: int, size: int | None) -> Iterator[np.ndarray]:
        for index in tqdm(range(count), desc="draw", unit="frame", leave=False, disable=count < 2000):
            yield self.render(index / self.fps, size)

    def _info(self, size: int) -> VideoInfo:
        return VideoInfo(
            source="shapes",
            width=size,
            height=size,
            duration=self.duration,
            start=0.0,
            fps=self.fps,
            num_frames=round(self.duration * self.fps),
            codec="none",
            rotation=0,
            has_audio=bool(self.beeps),
            backend="drawn",
        )
