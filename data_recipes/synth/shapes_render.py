"""Pixels of the shapes world: anti-aliased shapes, digits and textured backgrounds, in plain NumPy.

Everything is described in units of the frame's side (0 = left or top edge, 1 = right or bottom edge), so that one scene
can be drawn at any resolution. Frames are square.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vlm.errors import ConfigError

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 35),
    "green": (35, 165, 55),
    "blue": (45, 75, 235),
    "yellow": (240, 225, 40),
    "purple": (130, 40, 175),
    "orange": (245, 130, 20),
    "white": (248, 248, 248),
    "pink": (250, 150, 195),
}
DIGITS: tuple[str, ...] = tuple("0123456789")
TEXTURES: tuple[str, ...] = ("noise", "stripes", "checks", "gradient")

# Five columns by seven rows, one string of bits per row.
_GLYPHS: dict[str, str] = {
    "0": "01110 10001 10011 10101 11001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00010 00100 01000 11111",
    "3": "11111 00010 00100 00010 00001 10001 01110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00010 01100",
}


@dataclass(frozen=True)
class Background:
    """A still, muted texture; darker and greyer than every colour of `COLOURS`.

    Attributes:
        texture: One of `TEXTURES`.
        low: RGB where the texture's field is 0.
        high: RGB where it is 1.
        frequency: Periods per frame side (stripes, checks) or cells of coarse noise.
        angle: Direction of stripes and gradients, radians.
        seed: Of the noise.
    """

    texture: str
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    frequency: float
    angle: float
    seed: int


def random_background(rng: np.random.Generator) -> Background:
    """Draw a background: a dark or middle grey with a slight tint and a gentle contrast."""
    base = rng.integers(20, 95)
    tint = rng.integers(-12, 13, size=3)
    low = np.clip(base + tint, 8, 120)
    high = np.clip(low + rng.integers(10, 36), 8, 130)
    return Background(
        texture=TEXTURES[rng.integers(len(TEXTURES))],
        low=(int(low[0]), int(low[1]), int(low[2])),
        high=(int(high[0]), int(high[1]), int(high[2])),
        frequency=float(rng.uniform(2.0, 6.0)),
        angle=float(rng.uniform(0.0, np.pi)),
        seed=int(rng.integers(2**31)),
    )


@lru_cache(maxsize=64)
def draw_background(background: Background, size: int) -> np.ndarray:
    """Render ``background`` as uint8 ``[size, size, 3]`` (cached: treat the array as read-only)."""
    field = _field(background, size)[..., None]
    low, high = np.array(background.low, np.float32), np.array(background.high, np.float32)
    grain = np.random.default_rng(background.seed).normal(0.0, 2.0, size=(size, size, 1))
    picture = np.clip(low + field * (high - low) + grain, 0, 255).astype(np.uint8)
    picture.setflags(write=False)
    return picture


def draw(frame: np.ndarray, what: str, colour: tuple[int, int, int], x: float, y: float, r: float, a: float) -> None:
    """Draw a shape or digit into ``frame`` (uint8 ``[H, H, 3]``) in place.

    Args:
        frame: The picture to draw into.
        what: One of `SHAPES` or `DIGITS`.
        colour: RGB, 0 to 255.
        x: Centre, in frame sides.
        y: Centre, in frame sides, downwards.
        r: Circumscribed radius, in frame sides.
        a: Anticlockwise rotation, radians.

    Raises:
        ConfigError: ``what`` is neither a shape nor a digit.
    """
    size = frame.shape[0]
    reach = 1.2 * r * size + 1.0
    left, right = _clip(x * size - reach, size), _clip(x * size + reach + 1, size)
    top, bottom = _clip(y * size - reach, size), _clip(y * size + reach + 1, size)
    if left >= right or top >= bottom:
        return
    u = (np.arange(left, right, dtype=np.float32) + 0.5 - x * size)[None, :] / (r * size)
    v = (np.arange(top, bottom, dtype=np.float32) + 0.5 - y * size)[:, None] / (r * size)
    cos, sin = np.float32(np.cos(a)), np.float32(np.sin(a))
    inside = _inside(what, u * cos - v * sin, u * sin + v * cos)
    mask = np.clip(inside * np.float32(r * size) + 0.5, 0.0, 1.0)[..., None]
    patch = frame[top:bottom, left:right]
    patch[:] = (patch + mask * (np.array(colour, np.float32) - patch) + 0.5).astype(np.uint8)


def _clip(value: float, size: int) -> int:
    return int(min(max(value, 0), size))


def _inside(what: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance (positive inside, unit radius) of the points ``(u, v)`` to the outline of ``what``."""
    if what == "circle":
        return np.asarray(0.95 - np.hypot(u, v))
    if what == "square":
        return np.asarray(0.82 - np.maximum(np.abs(u), np.abs(v)))
    if what == "triangle":
        return np.asarray(0.57 - np.maximum(v, 0.8660254 * np.abs(u) - 0.5 * v))
    if what == "star":
        return _star(u, v)
    if what == "cross":
        x, y = np.abs(u), np.abs(v)
        return np.asarray(np.maximum(np.minimum(1.0 - x, 0.3 - y), np.minimum(0.3 - x, 1.0 - y)))
    if what in _GLYPHS:
        return _glyph(what, u, v)
    raise ConfigError(f"cannot draw {what!r}; choose one of {', '.join(SHAPES)} or a digit 0-9")


def _star(u: np.ndarray, v: np.ndarray, inner: float = 0.44) -> np.ndarray:
    """Five-pointed star: fold the plane into one half-sector, then one straight edge is left."""
    sector = 2 * np.pi / 5
    theta = np.arctan2(u, -v)
    theta = np.abs((theta + sector / 2) % sector - sector / 2)
    rho = np.hypot(u, v)
    x, y = rho * np.cos(theta), rho * np.sin(theta)
    ex, ey = inner * np.cos(sector / 2) - 1.05, inner * np.sin(sector / 2)
    return np.asarray((ex * y - ey * (x - 1.05)) / np.hypot(ex, ey), dtype=np.float32)


def _glyph(digit: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Digit: bilinear look-up in a 5 x 7 bitmap that spans 1.2 x 1.7 radii, as a soft distance."""
    bits = np.array([[int(b) for b in row] for row in _GLYPHS[digit].split()], np.float32)
    bits = np.pad(bits, 2)
    column, row = np.broadcast_arrays(u / 0.24 + 4.0, v / 0.24 + 5.0)
    column, row = np.clip(column, 0, 7.999), np.clip(row, 0, 9.999)
    c, r = column.astype(int), row.astype(int)
    fc, fr = column - c, row - r
    upper = bits[r, c] * (1 - fc) + bits[r, c + 1] * fc
    lower = bits[r + 1, c] * (1 - fc) + bits[r + 1, c + 1] * fc
    return np.asarray((upper * (1 - fr) + lower * fr - 0.38) * 0.24)


def _field(background: Background, size: int) -> np.ndarray:
    """The texture as float32 ``[size, size]`` in [0, 1]."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = axis[None, :], axis[:, None]
    along = x * np.cos(background.angle) + y * np.sin(background.angle)
    across = y * np.cos(background.angle) - x * np.sin(background.angle)
    turn = 2 * np.pi * background.frequency
    if background.texture == "stripes":
        field = 0.5 + 0.5 * np.sin(turn * along)
    elif background.texture == "checks":
        field = 0.5 + 0.5 * np.tanh(4 * np.sin(turn * along) * np.sin(turn * across))
    elif background.texture == "gradient":
        field = (along - along.min()) / max(float(np.ptp(along)), 1e-6)
    else:
        field = _coarse_noise(background, axis)
    return np.asarray(field, dtype=np.float32)


def _coarse_noise(background: Background, axis: np.ndarray) -> np.ndarray:
    """Bilinearly interpolated noise on a coarse grid, the same picture at every resolution."""
    cells = round(background.frequency) + 2
    grid = np.random.default_rng(background.seed).random((cells + 1, cells + 1), dtype=np.float32)
    at = axis * (cells - 1e-3)
    i, f = at.astype(int), at - at.astype(int)
    rows = grid[i] * (1 - f)[:, None] + grid[i + 1] * f[:, None]
    return np.asarray(rows[:, i] * (1 - f) + rows[:, i + 1] * f)
