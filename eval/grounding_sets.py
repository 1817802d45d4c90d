"""What can be asked about time: clips of our own worlds, written as real files, and anybody's annotated videos."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_recipes.mixtures.temporal import temporal
from data_recipes.sample import REASON, rng_for
from eval.grounding_footage import cut
from eval.spans import Question
from vlm.errors import ConfigError
from vlm.media import load_video, plan_video
from vlm.time import Span

WORLDS = ("shapes", "reasoning", "joined", "joined-reasoning", "footage")
"""Drawn clips, and joined pictures; of each, when something shows, and questions that need reasoning. Real footage, cut together."""


@dataclass(frozen=True)
class Asked:
    """One question, and what is right.

    Attributes:
        part: The video as a content part.
        question: In words.
        truth: Name of the video, true spans, duration.
        answer: True answer, times as ``{t:...}`` marks.
        kind: Questions of a kind are also averaged on their own.
    """

    part: dict[str, Any]
    question: str
    truth: Question
    answer: str
    kind: str


def world(
    name: str, folder: Path, *, videos: int, seed: int, seconds: float, frames: int, level: str = "twenty"
) -> Iterator[Asked]:
    """Questions about ``videos`` held-out clips of one of `WORLDS`; the files of a clip are made when its first question comes.

    Args:
        name: Which world.
        folder: Where files go.
        videos: How many clips.
        seed: Of clips and questions.
        seconds: Length of joined clips and of footage; drawn clips last 20 s.
        frames: That the decoder will sample.
        level: Of drawn clips: ``twenty``, or ``brief``, where nothing lasts longer than a third of the clip.

    Raises:
        ConfigError: There is no such world or level.
    """
    if name not in WORLDS:
        raise ConfigError(
            f"data={name!r} is not one of {', '.join(WORLDS)}, and no format says how to read it as a file"
        )
    if name.startswith("joined"):
        yield from _joined(name, folder, videos, seed, seconds, frames)
    elif name == "footage":
        for index in range(videos):
            clip = cut(index, folder, seed=seed, seconds=seconds)
            for question, truth, answer in clip.questions(f"{name}-{index}"):
                yield Asked({"type": "video", "video": str(clip.path)}, question, truth, answer, "when")
    else:
        yield from _drawn(name, folder, videos, seed, frames, level)


def _drawn(name: str, folder: Path, videos: int, seed: int, frames: int, level: str) -> Iterator[Asked]:
    from data_recipes.synth.shapes import conversations
    from data_recipes.synth.shapes_questions import Asker
    from data_recipes.synth.shapes_reasoning import Reasoner

    data = conversations("heldout", seed=seed, size=videos, level=level, num_frames=frames)
    for index in range(videos):
        scene, rng = data.scene(index), rng_for(seed, index, 2)
        if name == "reasoning":
            turns = Reasoner(scene, rng, split="heldout", sound=bool(scene.beeps)).turns(6)
        else:
            turns = Asker(scene, rng, split="heldout", still=False).turns(3, ("when",))
        if not turns:
            continue
        path = scene.write(folder / f"{name}.mp4")
        for turn in turns:
            truth = Question(f"{name}-{index}", turn.spans, scene.duration)
            yield Asked({"type": "video", "video": str(path)}, turn.question, truth, turn.answer, turn.kind)


def _joined(name: str, folder: Path, videos: int, seed: int, seconds: float, frames: int) -> Iterator[Asked]:
    from data_recipes.synth.smol import conversations
    from data_recipes.synth.smol_reasoning import PHRASINGS

    think = name == "joined-reasoning"
    shots = (3, 6) if seconds <= 30 else (5, 8) if seconds <= 120 else (8, 12)
    data = conversations(
        "picture", size=videos, seed=seed, medium="file", seconds=(seconds, seconds), shots=shots,
        turns=(6, 6) if think else (3, 3), kinds=tuple(REASON + kind for kind in PHRASINGS) if think else ("when",),
        classes=0.0, speech=0.5 if think else 0.0, frames=frames,
    )  # fmt: skip
    data = replace(data, folder=str(folder))
    for index in range(videos):
        sample = data[index]
        part = sample.messages[0]["content"][0]
        for turn in sample.meta["turns"]:
            truth = Question(f"{name}-{index}", tuple(Span(*s) for s in turn.spans), sample.meta["duration"])
            yield Asked(part, turn.question, truth, turn.answer, turn.kind)


def annotated(
    path: str | Path, *, format: str, task: str, media: str | Path | None, seed: int, limit: int | None
) -> Iterator[Asked]:
    """Questions from a file of annotations, each video's duration from the file or else from the video.

    Raises:
        ConfigError: Unknown format or task.
        DataError: The file is damaged, or has nothing for the task.
    """
    data = temporal(task=task, format=format, path=path, media=Path(path).parent if media is None else media, seed=seed)
    for index in range(len(data) if limit is None else min(limit, len(data))):
        sample = data[index]
        (question, answer), part = sample.meta["turns"][0], sample.messages[0]["content"][0]
        duration = sample.meta["duration"] or _seconds(part["video"])
        truth = Question(sample.meta["video"], tuple(sample.meta["spans"]), duration)
        yield Asked(part, question, truth, answer, task)


def _seconds(video: Any) -> float:
    """Length of a video; the packets of some containers do not tell, then frames are read."""
    return float((plan_video(video, num_frames=1) or load_video(video, num_frames=1)).end)
