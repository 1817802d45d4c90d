"""`Span`: a stretch of time in seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vlm.errors import ConfigError


@dataclass(frozen=True, order=True)
class Span:
    """A closed stretch of time; an instant has ``start == end``.

    Attributes:
        start: Seconds.
        end: Seconds, not before ``start``.

    Raises:
        ConfigError: A bound is not finite, or the span ends before it starts (`Span.of` accepts any order).
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise ConfigError(f"Span({self.start}, {self.end}) is not finite")
        if self.end < self.start:
            raise ConfigError(
                f"Span({self.start}, {self.end}) ends before it starts; use Span.of(a, b) for bounds in any order"
            )

    @classmethod
    def of(cls, one: float, other: float) -> Span:
        """The span between two times given in any order."""
        return cls(min(one, other), max(one, other))

    @property
    def length(self) -> float:
        """Seconds from start to end."""
        return self.end - self.start

    def clamp(self, duration: float) -> Span:
        """The nearest span inside ``[0, duration]`` seconds."""
        return Span(min(max(self.start, 0.0), duration), min(max(self.end, 0.0), duration))

    def iou(self, other: Span) -> float:
        """Intersection over union in 0..1; 0 for two instants, whose union has no length (as in LITA's evaluator)."""
        overlap = max(0.0, min(self.end, other.end) - max(self.start, other.start))
        union = self.length + other.length - overlap
        return overlap / union if union > 0 else 0.0


def frame_edges(timestamps: np.ndarray, duration: float) -> np.ndarray:
    """Edges ``[T+1]`` in seconds: halfway between neighbouring timestamps, 0 and ``duration`` at the ends."""
    middle = (timestamps[1:] + timestamps[:-1]) / 2
    return np.concatenate([[0.0], np.clip(middle, 0.0, duration), [duration]])
