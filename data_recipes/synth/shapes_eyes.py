"""Dense labels for pretraining the nano model's eyes: which shape and colour lies under every patch of a picture.

The training split only, so the held-out colour-shape pairs stay unseen. Colours, shapes and digits have separate labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data_recipes.sample import rng_for
from data_recipes.synth.shapes_render import COLOURS, DIGITS, SHAPES, draw
from data_recipes.synth.shapes_scene import Scene
from data_recipes.synth.shapes_world import Level, random_scene

FORMS: tuple[str, ...] = ("nothing", *SHAPES, *DIGITS)
"""Classes of the first label."""

_LEVEL = Level(still=True, digit=0.6)


@dataclass(frozen=True)
class EyesDataset:
    """Random pictures with a form and a colour label per patch.

    Attributes:
        size: Number of pictures.
        seed: Of all randomness.
        image_size: Side, pixels.
        patch: Side of a patch, pixels.
    """

    size: int
    seed: int
    image_size: int = 64
    patch: int = 8

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``pixel_values [3, H, W]`` in -1..1, ``labels [P]`` (index into `FORMS`) and ``colours [P]`` (-100 where nothing is)."""
        rng = rng_for(self.seed, index)
        scene = random_scene(rng, _LEVEL, split="train", size=self.image_size, num_frames=1)
        frame = _worn(rng, scene.render(0.0).astype(np.float32))
        forms, colours = patch_labels(scene, self.image_size, self.patch)
        pixels = torch.from_numpy(frame).permute(2, 0, 1) / 127.5 - 1.0
        labels = torch.from_numpy(forms)
        return {
            "id": f"eyes-{self.seed}-{index}",
            "input_ids": torch.zeros_like(labels),
            "labels": labels,
            "colours": torch.from_numpy(colours),
            "pixel_values": pixels,
        }


def eyes(size: int, seed: int, image_size: int = 64, patch: int = 8) -> EyesDataset:
    """The dataset, for recipes."""
    return EyesDataset(size, seed, image_size, patch)


def patch_labels(scene: Scene, size: int, patch: int, *, least: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    """Labels of all patches in rows, int64 ``[P]`` twice: index into `FORMS`, and index of the colour (-100: nothing there).

    Args:
        scene: Drawn at its first instant.
        size: Side of the picture, pixels.
        patch: Side of a patch, pixels.
        least: A patch counts as covered from this share of its area on.
    """
    side = size // patch
    forms, colours = np.zeros(side * side, np.int64), np.full(side * side, -100, np.int64)
    for thing in scene.things:
        canvas = np.zeros((size, size, 3), np.uint8)
        draw(canvas, thing.shape, (255, 255, 255), *thing.track.at(0.0), thing.radius, thing.angle)
        share = canvas[..., 0].reshape(side, patch, side, patch).mean((1, 3)).ravel() / 255.0
        covered = share >= (least if not thing.is_digit else 0.5 * least)
        forms[covered] = FORMS.index(thing.shape)
        colours[covered] = list(COLOURS).index(thing.colour)
    return forms, colours


def _worn(rng: np.random.Generator, frame: np.ndarray) -> np.ndarray:
    """Half of the pictures get coding-like wear: noise, and colour at half the resolution."""
    if rng.random() < 0.5:
        return frame
    grey = frame.mean(-1, keepdims=True)
    tint = (frame - grey).reshape(frame.shape[0] // 2, 2, frame.shape[1] // 2, 2, 3).mean((1, 3))
    worn = grey + tint.repeat(2, 0).repeat(2, 1) + rng.normal(0.0, rng.uniform(0.0, 5.0), size=frame.shape)
    return np.clip(worn, 0, 255).astype(np.float32)
