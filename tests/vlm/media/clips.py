"""Real files for the media tests. Every frame carries its number as a bar code, so a test can tell which one it got."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlm.media.cursor import Cursor

BITS = 12
HEIGHT, WIDTH = 64, 96


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A grey moving texture with `number` in black and white blocks along the top -> uint8 [H, W, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    grey = 128 + 60 * np.sin((x + 3 * number) / 9.0) * np.cos((y - 2 * number) / 7.0)
    out = np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
    block = width // BITS
    for bit in range(BITS):
        out[: height // 4, bit * block : (bit + 1) * block] = 255 * (number >> bit & 1)
    return out


def number_of(frame: np.ndarray) -> int:
    """Read the bar code of `picture` back from a decoded (possibly scaled) frame."""
    height, width = frame.shape[:2]
    block = width / BITS
    values = [frame[height // 8, int((bit + 0.5) * block)].mean() > 127 for bit in range(BITS)]
    return sum(1 << bit for bit, value in enumerate(values) if value)


def numbers_of(frames: Iterable[np.ndarray]) -> list[int]:
    """`number_of` for each frame."""
    return [number_of(frame) for frame in frames]


def encode(
    path: Path,
    times: Sequence[int],
    *,
    base: Fraction = Fraction(1, 1000),
    codec: str = "libx264",
    container: str | None = None,
    options: dict[str, str] | None = None,
    gop: int = 12,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    rotation: int | None = None,
    sound: tuple[int, float] | None = None,
    muxer: dict[str, str] | None = None,
    pixels: str = "yuv420p",
) -> Path:
    """Encode `picture(0), picture(1), ...` at the given times (in units of `base` seconds).

    Args:
        sound: (sample rate, seconds) of a 440 Hz tone as a second stream.
        rotation: Counter-clockwise degrees for the container's display matrix.
        muxer: Options of the container.
    """
    import av

    with av.open(str(path), "w", format=container, options=muxer or {}) as file:
        rate = Fraction(max(1, len(times) - 1)) / max(Fraction(times[-1] - times[0]) * base, Fraction(1, 1000))
        stream: Any = file.add_stream(codec, rate=rate.limit_denominator(1000), options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = base
        stream.codec_context.gop_size = gop
        if rotation is not None:
            stream.set_display_rotation(rotation)
        audio: Any = file.add_stream("aac", rate=sound[0]) if sound else None
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame.pts, frame.time_base = time, base
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        if audio is not None and sound is not None:
            _encode_tone(file, audio, *sound)
    return path


def _encode_tone(file: Any, stream: Any, rate: int, seconds: float) -> None:
    import av

    samples = tone(rate, seconds)
    for place in range(0, samples.shape[1], 1024):
        frame = av.AudioFrame.from_ndarray(samples[:, place : place + 1024].copy(), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, place, Fraction(1, rate)
        file.mux(stream.encode(frame))
    file.mux(stream.encode(None))


def tone(rate: int, seconds: float, frequency: float = 440.0) -> np.ndarray:
    """A sine, float32 [1, S]."""
    t = np.arange(round(rate * seconds)) / rate
    return 0.5 * np.sin(2 * np.pi * frequency * t, dtype=np.float32)[None].astype(np.float32)


def regular(count: int, fps: int = 25, base: Fraction = Fraction(1, 1000)) -> list[int]:
    """Times of `count` frames at `fps`."""
    return [round(Fraction(i, fps) / base) for i in range(count)]


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one time for each frame that any cursor decodes."""
    found: list[int] = []
    decode = Cursor._decode

    def counting(self: Cursor, packet: Any) -> Any:
        frames = decode(self, packet)
        found.extend(frame.pts or 0 for frame in frames)
        return frames

    monkeypatch.setattr(Cursor, "_decode", counting)
    return found


def cut(path: Path, target: Path, keep: float) -> Path:
    """Copy the first `keep` of a file."""
    shutil.copyfile(path, target)
    with target.open("r+b") as file:
        file.truncate(int(path.stat().st_size * keep))
    return target


def shown_at(seconds: float, times: np.ndarray) -> int:
    """What the reader has to return: number of the frame with the largest time <= `seconds` (the first before that)."""
    return max(int(np.searchsorted(times, seconds + 1e-6, side="right")) - 1, 0)
