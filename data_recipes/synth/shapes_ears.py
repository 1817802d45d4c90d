"""Dense labels for pretraining the nano model's ears: in which tenths of a second of a window there is a beep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data_recipes.sample import rng_for
from data_recipes.synth.shapes_scene import SOUND_RATE, tone
from data_recipes.synth.shapes_world import beep_times
from vlm.encoders.audio import log_mel
from vlm.errors import ConfigError

SLICE = 0.1  # seconds that a label stands for


@dataclass(frozen=True)
class EarsDataset:
    """Random windows of sound: silence, faint or loud noise, and none to four beeps, as a Whisper encoder gets them.

    Attributes:
        size: Number of windows.
        seed: Of all randomness.
        seconds: Length of a window.
        num_mel_bins: Height of the spectrograms.
    """

    size: int
    seed: int
    seconds: float = 10.0
    num_mel_bins: int = 16

    def __post_init__(self) -> None:
        if self.seconds < 2.0:
            raise ConfigError(f"seconds={self.seconds} is too short for four beeps; give 2 or more")

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One window.

        Returns:
            ``mel [num_mel_bins, 100 * seconds]`` and ``labels [seconds / SLICE]``: 1 where a beep fills at least half of the slice.
        """
        if not 0 <= index < self.size:
            raise IndexError(f"item {index} of {self.size} windows of sound")
        rng = rng_for(self.seed, index)
        samples = _noise(rng, round(self.seconds * SOUND_RATE))
        loud = np.zeros(len(samples), np.float32)
        for start, end in _beeps(rng, self.seconds):
            first = round(start * SOUND_RATE)
            piece = slice(first, min(round(end * SOUND_RATE), len(samples)))
            beep = tone(piece.stop - first, float(rng.uniform(300.0, 2000.0)))
            samples[piece] += beep * float(rng.uniform(0.4, 1.2))
            loud[piece] = 1.0
        labels = torch.from_numpy(loud.reshape(-1, round(SLICE * SOUND_RATE)).mean(1).round().astype(np.int64))
        return {
            "id": f"ears-{self.seed}-{index}",
            "input_ids": torch.zeros_like(labels),
            "labels": labels,
            "mel": log_mel(samples, rate=SOUND_RATE, num_mel_bins=self.num_mel_bins),
        }


def ears(size: int, seed: int, seconds: float = 10.0, num_mel_bins: int = 16) -> EarsDataset:
    """The dataset, for recipes."""
    return EarsDataset(size, seed, seconds, num_mel_bins)


def _noise(rng: np.random.Generator, count: int) -> np.ndarray:
    """Silence, or noise of up to -40 dB: what a codec leaves behind is fainter. Part of the windows end early, in exact silence."""
    if rng.random() < 0.4:
        return np.zeros(count, np.float32)
    samples = rng.normal(0.0, 10.0 ** rng.uniform(-5.0, -2.0), size=count).astype(np.float32)
    if rng.random() < 0.3:
        samples[int(rng.integers(count)) :] = 0.0
    return samples


def _beeps(rng: np.random.Generator, seconds: float) -> list[tuple[float, float]]:
    """(start, end) of none to four beeps, in seconds; the first may have begun before the window."""
    found = list(beep_times(rng, int(rng.integers(5)), seconds, most=0.7, margin=0.0))
    if found and rng.random() < 0.3:  # cut off by the window's edge
        length = found[0][1] - found[0][0]
        found[0] = (0.0, length * float(rng.uniform(0.2, 1.0)))
    return found
