"""Feature maps of other pictures of the same kind, made up from the pictures there are (ours).

Most kinds of things have one training picture. A connector that only sees renderings of it reads each kind with certainty and is
lost on the next picture of the kind, whose features share about half of their direction with the first one's, where two kinds share
a quarter (`scripts/picture_likeness.py` measures it). Variations are like that: part of the shift away from the background is kept,
and the rest leads towards things that look alike.

    u' = c u + (1 - c) e,   c uniform in [0.2, 0.9]

where e is the mean shift of a picture and of an ImageNet prototype, both drawn from those nearest to u.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from data_recipes.synth.features import FeatureBank, classifier
from data_recipes.synth.imagenet import PrototypeMaps

KEPT = (0.2, 0.9)
SINGLE = ("middle", "left", "right", "two", "three")  # arrangements of one picture
_NEAR_PICTURES, _NEAR_CLASSES = 40, 20
_LENGTH = 0.9  # of a varied shift, in relation to the real one


class Variations:
    """Maps like those of a bank's pictures, but of pictures that do not exist.

    Args:
        maps: Prototypes of the ImageNet classes over the same bank.
    """

    def __init__(self, maps: PrototypeMaps) -> None:
        self.maps = maps

    @property
    def bank(self) -> FeatureBank:
        """The bank whose pictures are varied."""
        return self.maps.bank

    @cached_property
    def _shifts(self) -> np.ndarray:
        """Shift of every rendering of one thing in the middle, float32 ``[M, 1280]``."""
        return self.bank.pooled[self.bank.where("middle")] - self.maps.background

    @cached_property
    def unit_shifts(self) -> np.ndarray:
        """Directions of these shifts, float32 ``[M, 1280]``."""
        return self._shifts / np.linalg.norm(self._shifts, axis=1, keepdims=True)

    @cached_property
    def nouns(self) -> np.ndarray:
        """What each of these renderings shows, ``[M]``."""
        return np.array([self.bank.rows[int(i)].items[0].name.noun for i in self.bank.where("middle")])

    def draw(self, rows: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Map float16 ``[49, 1280]`` of variations of these rows (each of one picture) side by side."""
        shift = sum((self._varied(row, rng) for row in rows), np.zeros(()))
        return np.clip(self.maps.background + shift, 0.0, 6.0).astype(np.float16)

    def _varied(self, row: int, rng: np.random.Generator) -> np.ndarray:
        """The row's map less the background, with u replaced by u' where the thing is; float32 ``[49, 1280]``."""
        real = np.asarray(self.bank.features[row], dtype=np.float32) - self.maps.background
        u = real.mean(0)
        length = max(float(np.linalg.norm(u)), 1e-6)
        where = real @ u / length**2
        kept = float(rng.uniform(*KEPT))
        away = self._lookalike(u / length, self.bank.rows[row].items[0].name.noun, rng)
        varied = kept * u / length + (1 - kept) * away
        varied *= _LENGTH * length / max(float(np.linalg.norm(varied)), 1e-6)
        rest = real - where[:, None] * u
        return where[:, None] * varied + (0.5 + 0.5 * kept) * rest

    def _lookalike(self, unit_u: np.ndarray, noun: str, rng: np.random.Generator) -> np.ndarray:
        """e, of about unit length."""
        alike = np.where(self.nouns == noun, -np.inf, self.unit_shifts @ unit_u)
        picture = self.unit_shifts[int(rng.choice(np.argsort(-alike)[:_NEAR_PICTURES]))]
        weight, bias = classifier()
        usual = float(np.linalg.norm(self._shifts, axis=1).mean())
        logits = (self.maps.background + usual * unit_u) @ weight.T + bias
        shift = self.maps.prototypes[int(rng.choice(np.argsort(-logits)[:_NEAR_CLASSES]))] - self.maps.background
        return 0.5 * picture + 0.5 * shift / float(np.linalg.norm(shift))
