"""Haystacks and needles that come with the package: any video file, endless shapes in motion, pictures of digits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from data_recipes.sample import rng_for
from data_recipes.synth.shapes import DIGITS, needle_frame
from data_recipes.synth.shapes_world import Level, random_scene
from eval.needles import Needle
from vlm.media import Video, load_video


@dataclass(frozen=True)
class FileHaystack:
    """Frames of a video file, spread evenly over it.

    Attributes:
        path: The file.
        size: Side of the frames in pixels.
    """

    path: Path
    size: int

    @property
    def name(self) -> str:
        """With a part of its sha256 and the size, so that no result passes for another's."""
        with open(self.path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return f"{self.path.name}, sha256 {digest[:12]}, {self.size} px"

    def __call__(self, num_frames: int) -> Video:
        return load_video(self.path, num_frames=num_frames, size=self.size)


@dataclass(frozen=True)
class ShapesHaystack:
    """One frame a second of a scene of the shapes world that no training scene shows, without digits (ours).

    Attributes:
        size: Side of the frames in pixels.
        seed: Of the scene.
    """

    size: int
    seed: int = 0

    @property
    def name(self) -> str:
        return f"shapes in motion, seed {self.seed}, {self.size} px"

    def __call__(self, num_frames: int) -> Video:
        seconds = float(max(num_frames, 2))
        world = Level(shapes=(1, 3), seconds=(seconds, seconds), frames=(num_frames, num_frames), digit=0.0)
        scene = random_scene(
            rng_for(self.seed, num_frames), world, split="heldout", size=self.size, num_frames=num_frames
        )
        return scene.video(num_frames, self.size)


def digit_needles(*, size: int, seed: int = 0, question: str = "What digit is shown?") -> list[Needle]:
    """Ten pictures of digits with an open question."""
    return [Needle(needle_frame(digit, size, seed=seed), question, digit) for digit in DIGITS]
