"""Scores a model on held-out clips of the shapes world, written as real H.264 files and read by the real decoder.

Held out are the scenes, six colour-shape pairs (every clip shows at least one), and the phrasings. A second set of rows, "known pairs",
has unseen scenes and phrasings, too, but only pairs that training shows: what lies between the two is the price of new combinations.
Each question opens a conversation of its own. Rows carry the chance level (what guessing reaches, or always giving the commonest answer to
a kind of question if that is more), and the exact count of questions they rest on.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_recipes.sample import rng_for
from data_recipes.synth.shapes import Level, conversations
from data_recipes.synth.shapes_questions import Asker, Turn
from data_recipes.synth.shapes_scene import Scene
from data_recipes.synth.shapes_world import LEVELS
from eval.report import Row, row, write_results
from vlm.chat import Assistant
from vlm.time import Span

GROUPS: dict[str, tuple[str, ...]] = {
    "naming": ("shape", "list"),
    "colour": ("colour",),
    "count": ("count", "count_shape", "count_colour"),
    "presence": ("presence",),
    "order": ("first", "last", "which_first", "before"),
    "span": ("when", "digit_when"),
    "digit": ("digit",),
    "beep count": ("beep_count",),
    "beep span": ("beep_when",),
}
"""Row -> the kinds of question behind it."""

HEARD = (*GROUPS["beep count"], *GROUPS["beep span"])
"""Kinds of question about the clip with its sound track; the others are asked about silent files."""

SPLITS = {"heldout": "", "train": ", known pairs"}
"""Whose colour-shape pairs the scenes show -> how the rows are called."""

TARGETS = {"naming": 0.95, "colour": 0.95, "count": 0.95, "span": 0.80}


@dataclass
class Tally:
    """What was found for one group of questions.

    Attributes:
        right: 1 or 0 per question.
        chance: Chance level per question, if all answers were equally likely.
        truths: (kind of question, true answer) of each.
        ious: Intersection over union per span question.
        blind: The same for the answer "the middle half of the clip", which needs no eyes.
    """

    right: list[float] = field(default_factory=list)
    chance: list[float] = field(default_factory=list)
    truths: list[tuple[str, str]] = field(default_factory=list)
    ious: list[float] = field(default_factory=list)
    blind: list[float] = field(default_factory=list)


def evaluate(
    assistant: Assistant,
    *,
    n: int = 60,
    seed: int = 0,
    level: str | Level = "twenty",
    num_frames: int = 32,
    groups: Collection[str] = tuple(GROUPS),
    ask: Callable[[Path, Turn], tuple[str, list[Span]]] | None = None,
) -> list[Row]:
    """Ask about ``n`` clips of each kind.

    Args:
        assistant: The model.
        n: Number of clips with held-out pairs, and as many without.
        seed: Of the clips and questions.
        level: Kind of clips: by default 20 seconds long, 1 to 4 shapes.
        num_frames: Frames that the decoder samples.
        groups: Which of `GROUPS` to ask about.
        ask: ``(file, turn) -> (text, spans)``; by default `assistant` answers (an oracle can be put in here).

    Returns:
        Rows for `eval.report.write_results`.
    """
    asker = ask or (lambda path, turn: _ask(assistant, path, turn, num_frames))
    setting = {"clips": n, "num_frames": num_frames, "level": level if isinstance(level, str) else "custom"}
    rows: list[Row] = []
    for split, suffix in SPLITS.items():
        tallies: dict[str, Tally] = defaultdict(Tally)
        with tempfile.TemporaryDirectory(prefix="shapes-eval-") as folder:
            for index in tqdm(range(n), desc=f"shapes{suffix}", unit="clip"):
                scene, turns = questions(seed, index, split=split, level=level, num_frames=num_frames)
                for sound in (False, True):
                    asked = [t for t in turns if _group(t.kind) in groups and (t.kind in HEARD) is sound]
                    if not asked:
                        continue
                    path = scene.write(Path(folder) / "clip.mp4", sound=sound)
                    for turn in asked:
                        _score(tallies[_group(turn.kind)], turn, *asker(path, turn), duration=scene.duration)
        rows += _rows(tallies, suffix, **setting)
    return rows


def questions(
    seed: int, index: int, *, split: str = "heldout", level: str | Level = "twenty", num_frames: int = 32
) -> tuple[Scene, list[Turn]]:
    """A scene, and one question (two for naming, count and presence) of every group, in held-out phrasings.

    Args:
        seed: Of the scenes and questions.
        index: Which scene.
        split: "heldout" or "train": whose pairs the scene shows. No recipe trains on the scenes of level "twenty".
        level: Kind of clips.
        num_frames: Frames that the decoder will sample.
    """
    data = conversations(split, seed=seed, size=index + 1, level=level, num_frames=num_frames)
    scene, rng = data.scene(index), rng_for(seed, index, 1)
    world = LEVELS[level] if isinstance(level, str) else level
    asker = Asker(scene, rng, split="heldout", still=world.still, sound=world.beeps > 0)
    chosen: list[Turn] = []
    for group, kinds in GROUPS.items():
        chosen += asker.turns(2 if group in ("naming", "count", "presence") else 1, kinds)
    return scene, chosen


def _ask(assistant: Assistant, path: Path, turn: Turn, num_frames: int) -> tuple[str, list[Span]]:
    reply = assistant.chat(turn.question, video=path, num_frames=num_frames, max_new_tokens=40)
    return reply.text, reply.spans


def _group(kind: str) -> str:
    return next(group for group, kinds in GROUPS.items() if kind in kinds)


def _score(tally: Tally, turn: Turn, text: str, spans: list[Span], *, duration: float) -> None:
    """Exact match of the words (lists in any order); for spans the overlap of the first one."""
    if turn.spans:
        truth = turn.spans[0]
        span = Span.of(spans[0].start, spans[0].end) if spans else Span(0.0, 0.0)
        tally.ious.append(span.clamp(duration).iou(truth))
        tally.blind.append(Span(0.25 * duration, 0.75 * duration).iou(truth))
        return
    said, right = text, turn.answer
    if turn.kind in (*GROUPS["count"], *GROUPS["beep count"]):  # "a red circle, a blue star: two"
        said, right = (answer.rpartition(": ")[2] for answer in (said, right))
    tally.right.append(float(_normal(said) == _normal(right)))
    tally.chance.append(1.0 / turn.choices if turn.choices else 0.0)
    tally.truths.append((turn.kind, right))


def _normal(text: str) -> list[str]:
    """Words in lower case, without a final stop; parts of a list in alphabetical order."""
    return sorted(part.strip() for part in text.lower().strip().rstrip(".").split(","))


def _one_answer(truths: list[tuple[str, str]]) -> float:
    """Share of right answers for who gives the commonest answer to every question of a kind."""
    commonest: dict[str, int] = {}
    for (kind, _), count in Counter(truths).items():
        commonest[kind] = max(commonest.get(kind, 0), count)
    return sum(commonest.values()) / len(truths)


def _rows(tallies: dict[str, Tally], suffix: str, **setting: Any) -> list[Row]:
    rows = []
    for group in GROUPS:
        tally = tallies[group]
        if tally.right:
            chance = max(float(np.mean(tally.chance)), _one_answer(tally.truths))
            about = {**setting, "questions": len(tally.right), "chance": round(chance, 3)}
            rows.append(row(f"{group} accuracy{suffix}", float(np.mean(tally.right)), "", TARGETS.get(group), **about))
        if tally.ious:
            about = {**setting, "questions": len(tally.ious)}
            ious, blind = np.array(tally.ious), np.array(tally.blind)
            rows.append(
                row(
                    f"{group} mIoU{suffix}",
                    float(ious.mean()),
                    "",
                    TARGETS.get(group),
                    chance=round(float(blind.mean()), 3),
                    **about,
                )
            )
            share = round(float((blind >= 0.5).mean()), 3)
            rows.append(row(f"{group} R@0.5{suffix}", float((ious >= 0.5).mean()), "", None, chance=share, **about))
    return rows


def run(
    *,
    model: str | None = None,
    limit: int | None = None,
    out: Path = Path("docs/results"),
    seed: int = 0,
    num_frames: int = 32,
) -> Path:
    """Score a model and write ``shapes.json``.

    Args:
        model: ``nano`` (the default), a folder or a hub id.
        limit: Number of held-out clips, and of clips with known pairs; 100 by default.
        out: Folder of the results file.
        seed: Of the clips.
        num_frames: Frames sampled per clip.
    """
    import vlm

    name, clips = model or "nano", limit or 100
    rows = evaluate(vlm.load(name), n=clips, seed=seed, num_frames=num_frames)
    command = f"vlm eval shapes seed={seed} num_frames={num_frames} --model {name} --limit {clips}"
    return write_results("shapes", rows, command=command, seed=seed, out_dir=out)
