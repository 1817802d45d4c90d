"""Backgrounds that pictures are laid on: plain, gradient, or textured; a pure function of a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_recipes.sample import rng_for

KINDS = ("plain", "gradient", "texture")


@dataclass(frozen=True)
class Background:
    """What lies behind the pictures of one shot.

    Attributes:
        kind: One of `KINDS`.
        seed: Decides colours and texture.
    """

    kind: str
    seed: int

    def render(self, size: tuple[int, int]) -> np.ndarray:
        """uint8 ``[H, W, 3]`` for ``size = (H, W)``; the same look at every size."""
        rng = rng_for(self.seed, KINDS.index(self.kind))
        first, second = _colour(rng), _colour(rng)
        if self.kind == "plain":
            image = np.broadcast_to(first, (*size, 3))
        elif self.kind == "gradient":
            image = first + (second - first) * _ramp(size, float(rng.uniform(0, 2 * np.pi)))[..., None]
        else:
            image = first + (second - first) * _clouds(rng, size)[..., None] * float(rng.uniform(0.3, 1.0))
        return np.clip(image, 0, 255).astype(np.uint8)


def _colour(rng: np.random.Generator) -> np.ndarray:
    """Mostly light or muted, sometimes white or dark: pictures must stand out from most of them."""
    style = rng.choice(4, p=[0.25, 0.45, 0.2, 0.1])
    if style == 0:
        return np.full(3, 255.0)
    low, high = ((150, 255), (60, 200), (0, 80))[style - 1]
    return rng.uniform(low, high, 3)


def _ramp(size: tuple[int, int], angle: float) -> np.ndarray:
    """0..1 along a direction, ``[H, W]``."""
    y, x = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]), indexing="ij")
    values = x * np.cos(angle) + y * np.sin(angle)
    return (values - values.min()) / max(float(np.ptp(values)), 1e-6)


def _clouds(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Smooth noise of three scales in 0..1, ``[H, W]``."""
    total = np.zeros(size)
    for cells, weight in ((3, 1.0), (8, 0.5), (24, 0.25)):
        total += weight * _stretch(rng.random((cells, cells)), size)
    return (total - total.min()) / max(float(np.ptp(total)), 1e-6)


def _stretch(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear interpolation of a small grid to ``size``."""
    rows = np.linspace(0, grid.shape[0] - 1, size[0])
    columns = np.linspace(0, grid.shape[1] - 1, size[1])
    by_column = np.stack([np.interp(columns, np.arange(grid.shape[1]), row) for row in grid])
    low = np.floor(rows).astype(int)
    high = np.minimum(low + 1, grid.shape[0] - 1)
    share = (rows - low)[:, None]
    return by_column[low] * (1 - share) + by_column[high] * share
