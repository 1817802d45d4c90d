"""Dense labels for pretraining the nano model's eyes: which thing, form and colour lies under every patch of a picture.

The training split only, so the held-out colour-shape pairs stay unseen. Colours, shapes and digits have separate labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data_recipes.sample import rng_for
from data_recipes.synth.shapes_render import COLOURS, DIGITS, SHAPES, draw, draw_background
from data_recipes.synth.shapes_scene import Scene, Thing
from data_recipes.synth.shapes_world import HELD_OUT, Level, random_scene

FORMS: tuple[str, ...] = ("nothing", *SHAPES, *DIGITS)
"""Classes of the first label."""

_LEVEL = Level(still=True, shapes=(2, 4), digit=0.6)


@dataclass(frozen=True)
class EyesDataset:
    """Random pictures with labels per patch.

    Part of the shapes get an arbitrary colour (without a label): form must not be guessed from colour, or a pair that training
    never shows could not be recognised later. Such a colour keeps its distance from those that `HELD_OUT` hides for the shape.

    Attributes:
        size: Number of pictures.
        seed: Of all randomness.
        image_size: Side, pixels.
        patch: Side of a patch, pixels.
        recoloured: Share of the shapes with an arbitrary colour.
    """

    size: int
    seed: int
    image_size: int = 64
    patch: int = 8
    recoloured: float = 0.6

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One picture.

        Returns:
            ``pixel_values [3, H, W]`` in -1..1; ``labels [P]`` (index into `FORMS`), ``colours [P]`` (-100 where there is none),
            ``things [P]`` (0 for nothing, else the number of the thing).
        """
        rng = rng_for(self.seed, index)
        scene = random_scene(rng, _LEVEL, split="train", size=self.image_size, num_frames=1)
        paint = [_paint(rng, thing, self.recoloured) for thing in scene.things]
        frame = draw_background(scene.background, self.image_size).copy()
        for thing, (rgb, _) in zip(scene.things, paint, strict=True):
            draw(frame, thing.shape, rgb, *thing.track.at(0.0), thing.radius, thing.angle)
        owners = patch_owners(scene, self.image_size, self.patch)
        forms = np.array([0, *(FORMS.index(thing.shape) for thing in scene.things)])
        colours = np.array([-100, *(label for _, label in paint)])
        labels = torch.from_numpy(forms[owners])
        return {
            "id": f"eyes-{self.seed}-{index}",
            "input_ids": torch.zeros_like(labels),
            "labels": labels,
            "colours": torch.from_numpy(colours[owners]),
            "things": torch.from_numpy(owners),
            "pixel_values": torch.from_numpy(_worn(rng, frame.astype(np.float32))).permute(2, 0, 1) / 127.5 - 1.0,
        }


def eyes(size: int, seed: int, image_size: int = 64, patch: int = 8) -> EyesDataset:
    """The dataset, for recipes."""
    return EyesDataset(size, seed, image_size, patch)


def patch_owners(scene: Scene, size: int, patch: int, *, least: float = 0.15) -> np.ndarray:
    """Which thing lies under each patch at the first instant: int64 ``[P]`` in rows, 0 for none, else its number from 1 on.

    Args:
        scene: What to look at.
        size: Side of the picture, pixels.
        patch: Side of a patch, pixels.
        least: A patch counts as covered from this share of its area on (half of it for digits, which are thin).
    """
    side = size // patch
    owners = np.zeros(side * side, np.int64)
    for number, thing in enumerate(scene.things, start=1):
        canvas = np.zeros((size, size, 3), np.uint8)
        draw(canvas, thing.shape, (255, 255, 255), *thing.track.at(0.0), thing.radius, thing.angle)
        share = canvas[..., 0].reshape(side, patch, side, patch).mean((1, 3)).ravel() / 255.0
        owners[share >= (0.5 * least if thing.is_digit else least)] = number
    return owners


def _paint(rng: np.random.Generator, thing: Thing, recoloured: float) -> tuple[tuple[int, int, int], int]:
    """RGB of a thing and its colour label: its own, or arbitrary and -100."""
    if rng.random() >= recoloured:
        red, green, blue = (min(max(c + s, 0), 255) for c, s in zip(COLOURS[thing.colour], thing.shade, strict=True))
        return (red, green, blue), list(COLOURS).index(thing.colour)
    hidden = np.array([COLOURS[colour] for shape, colour in sorted(HELD_OUT) if shape == thing.shape]).reshape(-1, 3)
    while True:
        rgb = rng.integers(0, 256, size=3)
        if rgb.max() > 150 and (np.abs(hidden - rgb).max(-1) > 60).all():
            return (int(rgb[0]), int(rgb[1]), int(rgb[2])), -100


def _worn(rng: np.random.Generator, frame: np.ndarray) -> np.ndarray:
    """Half of the pictures get coding-like wear: noise, and colour at half the resolution."""
    if rng.random() < 0.5:
        return frame
    grey = frame.mean(-1, keepdims=True)
    tint = (frame - grey).reshape(frame.shape[0] // 2, 2, frame.shape[1] // 2, 2, 3).mean((1, 3))
    worn = grey + tint.repeat(2, 0).repeat(2, 1) + rng.normal(0.0, rng.uniform(0.0, 5.0), size=frame.shape)
    return np.clip(worn, 0, 255).astype(np.float32)
