"""LITA's tasks about time (2403.19046 §4) from any format of annotated videos: dense captions, localisation, questions, reasoning.

Which tasks there are, what each answers with, and that each asks in one of several wordings is the paper's; the wordings are ours. In a
recipe, one part of `train.mixture:mix` for each task and file::

    captions: {weight: 0.17, call: "data_recipes.mixtures.temporal:temporal",
               args: {task: dense, format: captions, path: train.json, media: videos/}}
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.readers.annotations import Annotated, Annotations, Event, Question
from data_recipes.readers.captions import captions
from data_recipes.readers.grounding import charades_sta, didemo, qvhighlights
from data_recipes.readers.nextqa import nextqa
from data_recipes.readers.rtl import rtl
from data_recipes.sample import Sample, conversation, mark_span, rng_for
from vlm.errors import ConfigError, DataError

FORMATS: dict[str, Callable[..., Annotations]] = {
    "captions": captions,
    "charades_sta": charades_sta,
    "didemo": didemo,
    "nextqa": nextqa,
    "qvhighlights": qvhighlights,
    "rtl": rtl,
}

_DENSE = (
    "What happens in the video, and when?",
    "Go through the video and say what happens.",
    "Tell me about everything that happens in the video.",
    "Caption each event of the video.",
)
_DENSE_FORM = (
    "Put start and end of each event before its sentence.",
    "Every sentence begins with the time at which its event starts and the time at which it ends.",
    "Give the two times of an event first, then one sentence about it.",
)
_LOCALISE = (
    'When does this happen: "{event}"?',
    'At what time in the video can one see "{event}"?',
    'Find "{event}" in the video.',
    'In which part of the video is it that "{event}"?',
)
_LOCALISE_FORM = ("Answer with start and end only.", "Give only the two times.", "Say nothing but the times.")
_SHORT_FORM = ("Answer with a short phrase.", "A short phrase is enough.")
TASKS = ("dense", "localise", "qa", "reasoning")
"""``dense`` and ``localise`` ask about events; ``qa`` and ``reasoning`` ask the questions of the file, ``qa`` for short answers."""


@dataclass(frozen=True)
class Temporal:
    """Conversations of one task; item ``i`` depends only on the fields and ``i``.

    Attributes:
        source: Annotated videos.
        task: One of `TASKS`.
        seed: Of wordings and of the event that is asked about.
        size: Number of conversations; after the last, the first comes again with another draw.
        units: What a conversation is about: an item of ``source``, and for questions which of them.
        options: How the video is loaded (``num_frames``, ...).
    """

    source: Annotations
    task: str
    seed: int
    size: int
    units: tuple[tuple[int, int], ...]
    options: dict[str, Any]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.size:
            raise IndexError(f"item {index} of {self.size} conversations")
        place, which = self.units[index % len(self.units)]
        item = self.source.items[place]
        rng = rng_for(self.seed, TASKS.index(self.task), index)
        if self.task == "dense":
            turn, events = _dense(rng, item), item.events
        elif self.task == "localise":
            event = item.events[int(rng.integers(len(item.events)))]
            turn, events = _localise(rng, event), (event,)
        else:
            turn, events = self._asked(rng, item.questions[which]), ()
        spans = item.questions[which].spans if not events else tuple(s for e in events for s in e.spans)
        meta = {"task": self.task, "video": item.video, "spans": spans, "duration": item.duration, "turns": [turn]}
        part = {**self.source.part(place), **self.options}
        return Sample(f"{self.source.name}-{self.task}-{index}", conversation([part], [turn]), meta)

    def _asked(self, rng: np.random.Generator, asked: Question) -> tuple[str, str]:
        return (_with(rng, asked.question, _SHORT_FORM) if self.task == "qa" else asked.question), asked.answer


def temporal(
    *,
    task: str | None = None,
    format: str,
    path: str | Path,
    media: str | Path,
    seed: int = 0,
    size: int | None = None,
    **options: Any,
) -> Temporal:
    """Conversations of one task about the videos of one file.

    Args:
        task: One of `TASKS`; default: the first that the file has something for.
        format: One of `FORMATS`.
        path: File of annotations.
        media: Folder of the videos.
        seed: Of wordings and draws.
        size: Number of conversations; default: one for each video or question.
        options: ``lengths`` goes to `charades_sta`; the others (``num_frames``, ``fps``) say how videos are loaded.

    Raises:
        ConfigError: Unknown task or format.
        DataError: The file is damaged, none of its videos is there, or it has nothing for this task.
    """
    for name, value, known in (("task", task, TASKS), ("format", format, tuple(FORMATS))):
        if value is not None and value not in known:
            raise ConfigError(f"{name}={value!r} is not one of {', '.join(known)}")
    lengths = {"lengths": options.pop("lengths")} if "lengths" in options else {}
    if lengths and format != "charades_sta":
        raise ConfigError(f"format={format!r} has no option 'lengths'; charades_sta has")
    source = FORMATS[format](path, media, **lengths)
    if task is None:
        task = next((one for one in TASKS if _units(source, one)), None)
        if task is None:
            raise DataError(f"{Path(path).name} has nothing to ask about")
    units = _units(source, task)
    if not units:
        raise DataError(f"{Path(path).name} has nothing for task={task!r}: format {format!r} has other annotations")
    return Temporal(source, task, seed, len(units) if size is None else size, tuple(units), options)


def _units(source: Annotations, task: str) -> list[tuple[int, int]]:
    """What can be asked: videos with events, or questions."""
    if task in ("dense", "localise"):
        return [(place, 0) for place, item in enumerate(source.items) if any(e.spans for e in item.events)]
    return [(place, which) for place, item in enumerate(source.items) for which in range(len(item.questions))]


def _dense(rng: np.random.Generator, item: Annotated) -> tuple[str, str]:
    """Every event in order of time, ``<start> <end> sentence``."""
    events = sorted(((span, e.text) for e in item.events for span in e.spans), key=lambda pair: pair[0])
    answer = " ".join(f"{mark_span(span)} {text}" for span, text in events)
    return _with(rng, _one(rng, _DENSE), _DENSE_FORM), answer


def _localise(rng: np.random.Generator, event: Event) -> tuple[str, str]:
    words = event.text.rstrip(". ")
    question = _one(rng, _LOCALISE).format(event=words[:1].lower() + words[1:])
    return _with(rng, question, _LOCALISE_FORM), ", ".join(mark_span(span) for span in sorted(event.spans))


def _with(rng: np.random.Generator, question: str, forms: tuple[str, ...]) -> str:
    return f"{question} {_one(rng, forms)}"


def _one(rng: np.random.Generator, of: tuple[str, ...]) -> str:
    return of[int(rng.integers(len(of)))]
