"""Haystacks: endless scenes of the shapes world, and real footage, which is repeated in disguise where it is too short."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np

from data_recipes.sample import rng_for
from data_recipes.synth.shapes import DIGITS
from data_recipes.synth.shapes_scene import Scene
from data_recipes.synth.shapes_world import Level, random_scene
from vlm.errors import ConfigError, DataError
from vlm.media import Video, VideoInfo, load_video, probe

SCENE_FRAMES = (24, 64)
"""Frames of one scene before the next cut."""

PIECE_FRAMES = (16, 64)
"""Frames of one piece of footage that is shown again."""

_VIDEOS = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm")


@dataclass(frozen=True)
class ScenesHaystack:
    """One frame a second of scene after scene of the shapes world, none of them a training scene (ours).

    A single scene would be stretched until next to nothing in it moves from frame to frame, or over a thousand frames. Hence the cuts.

    Attributes:
        size: Side of the frames in pixels.
        seed: Of the scenes.
        digits: White digits move about in place of coloured shapes: the haystack for needles that are shapes.
    """

    size: int
    seed: int = 0
    digits: bool = False

    @property
    def name(self) -> str:
        return f"scenes of {'digits' if self.digits else 'shapes'} in motion, seed {self.seed}, {self.size} px"

    def __call__(self, num_frames: int) -> Video:
        frames = np.empty((num_frames, self.size, self.size, 3), np.uint8)
        first = 0
        for scene, count in self._scenes(num_frames):
            frames[first : first + count] = scene.frames(scene.sample_times(count), self.size)
            first += count
        length = float(num_frames)
        info = VideoInfo("scenes", self.size, self.size, length, 0.0, 1.0, num_frames, "none", 0, False, "drawn")
        return Video(frames, np.arange(num_frames) + 0.5, length, "scenes", None, info, end=length)

    def _scenes(self, num_frames: int) -> Iterator[tuple[Scene, int]]:
        """Scenes with the number of frames of each; the last one is cut short."""
        rng, left = rng_for(self.seed, num_frames), num_frames
        while left:
            count = min(int(rng.integers(SCENE_FRAMES[0], SCENE_FRAMES[1] + 1)), left)
            seconds = float(max(count, 2))
            world = Level(shapes=(1, 3), seconds=(seconds, seconds), frames=(count, count), digit=0.0)
            scene = random_scene(rng, world, split="heldout", size=self.size, num_frames=count)
            yield (_of_digits(scene, rng) if self.digits else scene), count
            left -= count


def _of_digits(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same scene with another white digit for every shape."""
    names = rng.choice(DIGITS, size=len(scene.things), replace=False).tolist()
    pairs = zip(scene.things, names, strict=True)
    return replace(scene, things=tuple(replace(t, shape=n, colour="white", turns=None) for t, n in pairs))


def footage() -> tuple[Path, ...]:
    """The footage that can be had here: a rabbit (animated), and before it, if Debian's opencv-doc is there, a street and a tree."""
    from data_recipes.sources import debian_package

    paths = [Path(str(files("demo"))) / "examples/big_buck_bunny.mp4"]
    try:
        folder = debian_package("opencv-doc") / "usr/share/doc/opencv-doc/examples/data"
    except DataError:
        return tuple(paths)
    return tuple(p for p in [folder / "vtest.avi", folder / "tree.avi", *paths] if p.is_file())


@dataclass(frozen=True)
class FootageHaystack:
    """Frames spread evenly over video files that are shown one after another.

    If more frames are wanted than the files have, the rest are pieces of them (`PIECE_FRAMES` long, from random places), each cropped
    by up to a fifth and mirrored half of the time, so that no frame is shown twice (ours).

    Attributes:
        paths: The files.
        size: Side of the frames in pixels.
        seed: Of the pieces.
    """

    paths: tuple[Path, ...]
    size: int
    seed: int = 0

    @classmethod
    def of(cls, path: Path, size: int, seed: int = 0) -> FootageHaystack:
        """For a file, or for the videos in a folder in order of their names (a folder without any is one of still images).

        Raises:
            ConfigError: There is no such file or folder.
        """
        if not path.exists():
            raise ConfigError(
                f"haystack={path.name!r} is neither a file nor a folder; give a video, or a folder of them"
            )
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in _VIDEOS) if path.is_dir() else []
        return cls(tuple(inside) or (path,), size, seed)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Frames of each file."""
        infos = [probe(path) for path in self.paths]
        return tuple(info.num_frames or max(1, round((info.duration or 0.0) * (info.fps or 0.0))) for info in infos)

    @cached_property
    def name(self) -> str:
        """With a part of the files' sha256 and the size, so that no result passes for another's."""
        total = hashlib.sha256()
        for path in self.paths:
            for file in sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]:
                total.update(file.read_bytes())
        names, frames = " + ".join(p.name for p in self.paths), sum(self.counts)
        again = f"{frames} frames, then pieces of them, cropped and mirrored, seed {self.seed}"
        return f"{names}, sha256 {total.hexdigest()[:12]}, {self.size} px, {again}"

    def __call__(self, num_frames: int) -> Video:
        whole = self._spread(min(num_frames, sum(self.counts)))
        shown = len(whole.frames)
        if shown == num_frames:
            return whole
        step = whole.end / shown
        frames = np.concatenate([whole.frames, np.empty((num_frames - shown, *whole.frames.shape[1:]), np.uint8)])
        self._fill(frames, shown)
        times = np.append(whole.timestamps, whole.end + step * (np.arange(num_frames - shown) + 0.5))
        length = step * num_frames
        return replace(whole, frames=frames, timestamps=times, duration=length, end=length)

    def _spread(self, num_frames: int) -> Video:
        """Frames from every file in proportion to what it has, at their own times."""
        edges = np.round(np.append(0, np.cumsum(self.counts)) * num_frames / sum(self.counts)).astype(int)
        videos = [
            load_video(path, num_frames=int(n), size=self.size)
            for path, n in zip(self.paths, np.diff(edges), strict=True)
            if n
        ]
        if len(videos) == 1:
            return videos[0]
        starts = np.append(0.0, np.cumsum([v.duration for v in videos]))
        times = [v.timestamps + start for v, start in zip(videos, starts, strict=False)]
        length = float(starts[-1])
        joined, stamps = np.concatenate([v.frames for v in videos]), np.concatenate(times)
        return replace(videos[0], frames=joined, timestamps=stamps, duration=length, end=length, source="footage")

    def _fill(self, frames: np.ndarray, shown: int) -> None:
        """Write pieces of the first ``shown`` frames behind them."""
        rng, first = rng_for(self.seed, len(frames)), shown
        if shown < 2:
            raise DataError(f"the haystack {self.name!r} has {shown} frame; use a longer video")
        while first < len(frames):
            count = min(int(rng.integers(PIECE_FRAMES[0], PIECE_FRAMES[1] + 1)), len(frames) - first, shown)
            start = int(rng.integers(0, shown - count + 1))
            frames[first : first + count] = _disguised(frames[start : start + count], rng)
            first += count


def _disguised(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The frames cropped by 2 to 20 % and mirrored half of the time, at their old size."""
    from PIL import Image

    size = frames.shape[1]
    side = max(1, round(size * float(rng.uniform(0.8, 0.98))))
    top, left = (int(rng.integers(0, size - side + 1)) for _ in range(2))
    cut = frames[:, top : top + side, left : left + side]
    if rng.random() < 0.5:
        cut = cut[:, :, ::-1]
    pictures = [Image.fromarray(np.ascontiguousarray(f)).resize((size, size), Image.Resampling.BILINEAR) for f in cut]
    return np.stack([np.asarray(p) for p in pictures])
