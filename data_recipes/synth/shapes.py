"""The shapes-in-motion world: endless short conversations about clips whose every answer and time is known exactly.

Coloured shapes appear, move, collide, change colour and disappear over textured backgrounds; digits serve as needles and beeps
as sounds. One sample holds several question-answer turns about ONE clip, so that one visual encoding serves many answer tokens.
Everything is a pure function of ``(seed, index)``. The held-out split has other scenes, colour-shape pairs (`HELD_OUT`) that
no training scene shows, and phrasings that training never sees.

Examples:
    >>> data = conversations("train", seed=0, size=1000, level="clips")
    >>> data[0].messages[0]["content"][0]["type"]
    'video'
"""

from __future__ import annotations

import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.sample import REASON, Sample, check_kinds, conversation, reason_kinds, rng_for
from data_recipes.synth.needles import needle_frame
from data_recipes.synth.shapes_phrasings import PHRASINGS
from data_recipes.synth.shapes_questions import Asker, Turn
from data_recipes.synth.shapes_reasoning import PHRASINGS as REASONS
from data_recipes.synth.shapes_reasoning import Reasoner
from data_recipes.synth.shapes_render import COLOURS, DIGITS, SHAPES
from data_recipes.synth.shapes_scene import SOUND_RATE, Scene
from data_recipes.synth.shapes_world import HELD_OUT, LEVELS, Level, level, random_scene
from vlm.errors import ConfigError
from vlm.media import Video, load_video

__all__ = [
    "COLOURS",
    "DIGITS",
    "HELD_OUT",
    "LEVELS",
    "SHAPES",
    "Level",
    "Scene",
    "ShapesDataset",
    "ShapesMixture",
    "Turn",
    "conversations",
    "mixture",
    "needle_frame",
    "scene_for",
]

_SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class ShapesDataset:
    """A finite set of conversations; item ``i`` depends only on the fields and ``i``.

    Attributes:
        split: "train" or "heldout".
        seed: Of all randomness; the two splits never share a scene.
        size: Number of conversations.
        level: Name of a `LEVELS` entry (a step of the curriculum) or a `Level`.
        image_size: Side of the frames handed to the model, pixels.
        num_frames: Frames per clip; drawn from the level's range by default.
        turns: Most questions per conversation.
        kinds: Only these kinds of question: keys of `PHRASINGS`, or ``reason_`` and one of `data_recipes.synth.shapes_reasoning`; all of the
            former by default. A scene that gives nothing to reason about is asked about with kind ``when``.
        via_file: Share (0 to 1) of clips that go through a real H.264 file and the real decoder.
        file_sizes: Smallest and largest side of the written files, pixels.
    """

    split: str
    seed: int
    size: int
    level: str | Level = "clips"
    image_size: int = 64
    num_frames: int | None = None
    turns: int = 8
    kinds: tuple[str, ...] | None = None
    via_file: float = 0.0
    file_sizes: tuple[int, int] = (64, 256)

    def __post_init__(self) -> None:
        check_kinds(self.kinds, (*PHRASINGS, *(REASON + kind for kind in REASONS)))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.size:
            raise IndexError(f"item {index} of {self.size} conversations")
        rng = self._rng(index)
        step = level(self.level)
        scene, frames = self._scene(rng, step)
        sound = step.beeps > 0
        times = scene.sample_times(frames) if self.split == "train" else None
        asker = Asker(scene, rng, split=self.split, still=step.still, sound=sound, times=times)
        turns = asker.turns(self.turns, self.kinds)
        reasons = reason_kinds(self.kinds)
        if reasons and not step.still:
            turns += Reasoner(scene, rng, split=self.split, kinds=reasons, sound=sound, times=times).turns(self.turns)
            turns = [turns[i] for i in rng.permutation(len(turns))[: self.turns]] or asker.turns(self.turns, ("when",))
        media: list[dict[str, Any]] = []
        if step.still:
            media.append({"type": "image", "image": scene.render(0.0, self.image_size)})
        else:
            video = self._video(rng, scene, frames, sound)
            media.append({"type": "video", "video": video})
            if video.audio is not None:
                media.append({"type": "audio", "audio": video.audio})
        name = self.level if isinstance(self.level, str) else "custom"
        meta = {"turns": turns, "scene": scene, "duration": scene.duration, "frames": frames, "level": name}
        return Sample(
            f"shapes-{name}-{self.split}-{self.seed}-{index}",
            conversation(media, [(t.question, t.answer) for t in turns]),
            meta,
        )

    def scene(self, index: int) -> Scene:
        """The scene of item ``index``, without drawing anything."""
        return self._scene(self._rng(index), level(self.level))[0]

    def _rng(self, index: int) -> np.random.Generator:
        name = zlib.crc32(repr(self.level).encode())
        return rng_for(self.seed, _SPLITS.index(self.split), name, index)

    def _scene(self, rng: np.random.Generator, step: Level) -> tuple[Scene, int]:
        frames = int(rng.integers(step.frames[0], step.frames[1] + 1))
        frames = 1 if step.still else self.num_frames or frames
        side = 2 * int(rng.integers(self.file_sizes[0] // 2, self.file_sizes[1] // 2 + 1))
        return random_scene(rng, step, split=self.split, size=side, num_frames=frames), frames

    def _video(self, rng: np.random.Generator, scene: Scene, frames: int, sound: bool) -> Video:
        rate = SOUND_RATE if sound else None
        if rng.random() >= self.via_file:
            return scene.video(frames, self.image_size, sound_rate=rate)
        with tempfile.TemporaryDirectory(prefix="shapes-") as folder:
            path = scene.write(Path(folder) / "clip.mp4", sound=sound)
            return load_video(path, num_frames=frames, size=self.image_size, audio_rate=rate)


def conversations(
    split: str,
    *,
    seed: int,
    size: int,
    level: str | Level = "clips",
    image_size: int = 64,
    num_frames: int | None = None,
    turns: int = 8,
    kinds: tuple[str, ...] | None = None,
    via_file: float = 0.0,
) -> ShapesDataset:
    """Conversations about random scenes; see `ShapesDataset` for the arguments.

    Raises:
        ConfigError: Unknown split, level or kind of question.
    """
    if split not in _SPLITS:
        raise ConfigError(f"unknown split {split!r} of the shapes world; choose one of {', '.join(_SPLITS)}")
    if isinstance(level, str) and level not in LEVELS:
        raise ConfigError(f"unknown level {level!r} of the shapes world; choose one of {', '.join(LEVELS)}")
    return ShapesDataset(split, seed, size, level, image_size, num_frames, turns, kinds, via_file)


@dataclass(frozen=True)
class ShapesMixture:
    """Conversations of several levels, mixed; which level item ``i`` has depends only on the seed and ``i``.

    Attributes:
        parts: One dataset per level, all of the same size.
        shares: Share of each, adding up to 1.
    """

    parts: tuple[ShapesDataset, ...]
    shares: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, index: int) -> Sample:
        pick = rng_for(self.parts[0].seed, len(self.parts), index).choice(len(self.parts), p=self.shares)
        return self.parts[int(pick)][index]


def mixture(
    split: str,
    *,
    seed: int,
    size: int,
    levels: dict[str, float],
    image_size: int = 64,
    turns: int = 8,
    kinds: list[str] | None = None,
    via_file: float = 0.0,
) -> ShapesMixture:
    """Conversations of several levels.

    Args:
        split: "train" or "heldout".
        seed: Of all randomness.
        size: Number of conversations.
        levels: Weight of each level.
        image_size: Side of the frames, pixels.
        turns: Most questions per conversation.
        kinds: Only these kinds of question.
        via_file: Share of clips that go through a real file.

    Raises:
        ConfigError: Unknown split or level, or no positive weight.
    """
    total = sum(levels.values())
    if not total > 0 or min(levels.values()) < 0:
        raise ConfigError(f"levels={levels} of a mixture need weights that are not negative and not all 0")
    options: dict[str, Any] = {"image_size": image_size, "turns": turns, "via_file": via_file}
    options["kinds"] = tuple(kinds) if kinds else None
    parts = [conversations(split, seed=seed, size=size, level=name, **options) for name in levels]
    return ShapesMixture(tuple(parts), tuple(weight / total for weight in levels.values()))


def scene_for(split: str, *, seed: int, index: int, level: str | Level = "clips") -> Scene:
    """One scene on its own, for example to write as a file."""
    return conversations(split, seed=seed, size=index + 1, level=level).scene(index)
