"""Several datasets as one: which of them item ``i`` comes from depends only on the seed and ``i``.

In a recipe::

    data:
      call: train.mixture:mix
      args:
        parts:
          clips: {weight: 0.6, call: "data_recipes.synth.shapes:mixture", args: {split: train, levels: {clips: 1.0}, size: 100000}}
          needles: {weight: 0.4, call: "data_recipes.synth.needles:haystacks", args: {split: train, frames: [8, 64]}}
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from data_recipes.sample import rng_for
from train.build import call
from train.stages import Call
from vlm.errors import ConfigError


@dataclass(frozen=True)
class Mixture:
    """A weighted mixture; all items of a part come round before any comes again.

    Attributes:
        parts: Datasets with ``len()`` and ``[i]``.
        weights: Share of each, adding up to 1.
        seed: Decides which part an item comes from.
        size: Number of items.
    """

    parts: tuple[Any, ...]
    weights: tuple[float, ...]
    seed: int
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.size:
            raise IndexError(f"item {index} of {self.size}")
        part = self.parts[self.part_of(index)]
        return part[index % len(part)]

    def __getattr__(self, name: str) -> Any:
        if name == "lengths" and all(hasattr(part, "lengths") for part in self.parts):
            return self._lengths
        raise AttributeError(name)

    def part_of(self, index: int) -> int:
        """Which part item ``index`` comes from."""
        return int(rng_for(self.seed, len(self.parts), index).choice(len(self.parts), p=self.weights))

    @cached_property
    def _lengths(self) -> np.ndarray:
        every = [part.lengths for part in self.parts]
        return np.array([every[p][i % len(every[p])] for i in range(self.size) for p in [self.part_of(i)]])


def mix(
    *,
    parts: dict[str, dict[str, Any]],
    seed: int,
    size: int = 1_000_000,
    processor: Any = None,
    frames: int | None = None,
    seq_len: int | None = None,
) -> Mixture:
    """A mixture as recipes write it.

    Args:
        parts: For each name ``weight``, ``call`` and ``args`` of a dataset.
        seed: Of the choice of part, and of the parts that do not state their own.
        size: Number of items.
        processor: Handed on, like ``frames`` and ``seq_len``, to parts that take it.

    Raises:
        ConfigError: A part is wrong, or no weight is positive.
    """
    for name, part in parts.items():
        unknown = set(part) - {"weight", "call", "args"}
        if unknown or "call" not in part:
            raise ConfigError(f"parts.{name}={part}: a part of a mixture has call, args and weight")
    weights = np.array([float(part.get("weight", 1.0)) for part in parts.values()])
    if not len(weights) or not (np.isfinite(weights).all() and weights.min() >= 0 and weights.sum() > 0):
        raise ConfigError(
            f"the weights of parts {', '.join(parts)} must be numbers from 0 up, not all 0; got {weights.tolist()}"
        )
    context = {"seed": seed, "processor": processor, "frames": frames, "seq_len": seq_len}
    built = [
        call(Call(part["call"], dict(part.get("args") or {})), where=f"parts.{name}", **context)
        for name, part in parts.items()
    ]
    return Mixture(tuple(built), tuple((weights / weights.sum()).tolist()), seed, size)
