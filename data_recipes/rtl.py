"""Make questions for reasoning temporal localisation (LITA, 2403.19046 §4) from dense captions, or from the shapes world.

LITA had GPT-4 write them from timestamped captions; its prompt is in a supplement that we have not seen, so the prompt and the filter here
are ours. The result has the layout of ActivityNet-RTL's training file, which `data_recipes.readers.rtl` reads. What a writer says is
checked: a question without two times inside the video, or one that only repeats a caption, is dropped and counted.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_recipes.readers.annotations import Annotated, Annotations, Event
from data_recipes.readers.captions import captions
from data_recipes.sample import rng_for
from data_recipes.synth.shapes_reasoning import Reasoner
from data_recipes.synth.shapes_world import level as world_level
from data_recipes.synth.shapes_world import random_scene
from data_recipes.text_models import TextModel, text_model
from vlm.errors import ConfigError, DataError
from vlm.files import write_text
from vlm.time import Span

SYSTEM = "You write questions about videos. You know a video only by its captions, each with start and end in seconds."
PROMPT = """Length of the video: {duration:.1f} s.
{captions}

Write {count} questions that ask when something is the case, such that one has to think to find out what is meant: by order, by cause and \
effect, by a comparison, by what somebody intends, by what must have happened before. Do not use the words of a caption to name what you \
ask about. Every question has one answer: start and end in seconds, inside the video, and one sentence that says why.

Answer with a JSON list and nothing else:
[{{"question": "...", "start": 0.0, "end": 0.0, "explanation": "..."}}]"""

_GENERIC = frozenset(
    re.findall(
        r"\w+",
        """a an the is are was were be been being do does did done in on at of to from for with by and or as it its this that these those he
    they them his her their there when what which who whom whose where how why time moment part video clip during while shown show see seen
    visible appear happen take place start end begin first last after before someone somebody person people something""",
    )
)
_FENCE = re.compile(r"\[.*\]", re.DOTALL)


@dataclass
class Report:
    """What came of it.

    Attributes:
        videos: Videos that were asked about.
        kept: Questions in the file.
        dropped: Questions that are not, by reason.
    """

    videos: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Written:
    """A question as a writer gave it.

    Attributes:
        question: As it is asked.
        span: When, in seconds.
        why: One sentence.
    """

    question: str
    span: Span
    why: str

    def record(self) -> dict[str, str]:
        """In the layout of the training file."""
        return {"q": self.question, "a": f"<{self.span.start:.2f}> <{self.span.end:.2f}> {self.why}"}


def generate(
    source: Annotations, writer: TextModel, out: str | Path, *, per_video: int = 3, seed: int = 0, overlap: float = 0.6
) -> Report:
    """Ask ``writer`` for questions about every video, and write those that pass to ``out``.

    Every answer goes to ``OUT.part`` at once: the same command goes on after the last video that was answered. Answers to other questions,
    by another writer or with another seed are not taken.

    Args:
        source: Videos with captions.
        writer: Writes the questions.
        out: JSON file to write.
        per_video: Questions to ask for.
        seed: Passed to the writer.
        overlap: Share of a question's own words that may stand in the caption of the span it asks for.

    Raises:
        ConfigError: ``per_video`` or ``overlap`` makes no sense.
        DataError: The writer cannot be asked, or there is no video with captions.
    """
    if per_video < 1 or not 0 <= overlap <= 1:
        raise ConfigError(f"per_video={per_video} must be 1 or more, overlap={overlap} in 0..1")
    items = [item for item in source.items if item.events and item.duration]
    if not items:
        raise DataError(f"{source.name} has no video with captions and a duration")
    out, part = Path(out), Path(f"{out}.part")
    known = _answered(part)
    out.parent.mkdir(parents=True, exist_ok=True)
    report, content = Report(), dict[str, Any]()
    for index, item in enumerate(tqdm(items, desc="write questions", unit="video")):
        asked = prompt(item, per_video)
        key = hashlib.sha256(repr((item.video, writer.name, seed + index, SYSTEM, asked)).encode()).hexdigest()
        if key not in known:
            known[key] = writer.complete(asked, system=SYSTEM, max_tokens=256 * per_video, seed=seed + index)
            with open(part, "a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "reply": known[key]}) + "\n")
        kept = list(_checked(item, known[key], overlap, report))
        report.videos += 1
        report.kept += len(kept)
        if kept:
            content[item.video] = {"duration": item.duration, "QA": [w.record() for w in kept]}
    write_text(out, json.dumps(content, indent=1))
    part.unlink(missing_ok=True)
    return report


def prompt(item: Annotated, count: int) -> str:
    """What a writer is asked."""
    lines = [f"[{s.start:.1f} - {s.end:.1f}] {e.text}" for e in item.events for s in e.spans]
    return PROMPT.format(duration=item.duration, captions="\n".join(lines), count=count)


def _checked(item: Annotated, reply: str, overlap: float, report: Report) -> Iterator[Written]:
    found = _FENCE.search(reply)
    try:
        records = json.loads(found[0]) if found else None
    except ValueError:
        records = None
    if not isinstance(records, list):
        report.dropped["no JSON list"] += 1
        return
    for record in records:
        try:
            start, end = float(record["start"]), float(record["end"])
            question, why = (" ".join(str(record[k]).split()) for k in ("question", "explanation"))
        except (KeyError, TypeError, ValueError):
            report.dropped["no question with two times"] += 1
            continue
        if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end <= (item.duration or 0) + 0.5):
            report.dropped["times outside the video"] += 1
        elif not question or not why:
            report.dropped["no question with two times"] += 1
        elif restates(question, Span(start, end), item.events, overlap=overlap):
            report.dropped["repeats a caption"] += 1
        else:
            yield Written(question, Span(start, min(end, item.duration or end)), why)


def restates(question: str, span: Span, events: Sequence[Event], *, overlap: float = 0.6) -> bool:
    """Whether a question can be answered by finding its own words among the captions: a caption whose span overlaps the answer's by half
    has more than ``overlap`` of its words, generic ones aside."""
    asked = _stems(question)
    return any(
        asked and len(asked & _stems(event.text)) > overlap * len(asked)
        for event in events
        if any(span.iou(s) >= 0.5 for s in event.spans)
    )


def _stems(text: str) -> set[str]:
    words = re.findall(r"[a-z]+", text.lower())
    return {re.sub(r"(?:ing|ies|ed|es|s|y)$", "", w) if len(w) > 4 else w for w in words if w not in _GENERIC}


def shapes_videos(
    folder: str | Path, *, count: int, seed: int = 0, split: str = "train", level: str = "twenty", per_video: int = 3
) -> Report:
    """Clips of the shapes world with questions that need reasoning: ``FOLDER/rtl.json`` and ``FOLDER/videos``. Nobody needs to write them.

    Clips that are there already are not drawn again.

    Args:
        folder: Where everything goes.
        count: Number of clips.
        seed: Of clips and questions.
        split: "train" or "heldout" (kinds of question, phrasings and pairs that training does not have).
        level: Kind of clips, see `data_recipes.synth.shapes_world`.
        per_video: Most questions about one clip.

    Raises:
        ConfigError: A name or number makes no sense.
    """
    if count < 1 or per_video < 1:
        raise ConfigError(f"count={count} and per_video={per_video} must be 1 or more")
    videos, content, report = Path(folder) / "videos", dict[str, Any](), Report()
    videos.mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(count), desc="draw clips", unit="clip"):
        rng = rng_for(seed, split == "heldout", index)
        scene = random_scene(rng, world_level(level), split=split, size=64, num_frames=32)
        turns = Reasoner(scene, rng, split=split, sound=bool(scene.beeps)).turns(per_video)
        name = f"shapes-{split}-{seed}-{index:05d}"
        if not (videos / f"{name}.mp4").exists():
            os.replace(scene.write(videos / f".{name}.mp4"), videos / f"{name}.mp4")
        pairs = [
            Written(t.question, t.spans[0], t.answer.split(": ", 1)[1]).record() for t in turns if len(t.spans) == 1
        ]
        report.videos += 1
        report.kept += len(pairs)
        if pairs:
            content[name] = {"duration": scene.duration, "QA": pairs}
    write_text(Path(folder) / "rtl.json", json.dumps(content, indent=1))
    return report


def make(
    source: str,
    out: str | Path,
    *,
    count: int = 3,
    media: str | Path | None = None,
    writer: str | None = None,
    split: str = "train",
    seed: int = 0,
) -> str:
    """``vlm data rtl``: `shapes_videos` for ``shapes``, else `generate` for a file of captions; a sentence about what came of it.

    Raises:
        ConfigError: A file needs a writer.
    """
    if source == "shapes":
        report = shapes_videos(out, count=count, seed=seed, split=split)
    elif writer is None:
        raise ConfigError(
            "questions about the videos of a file need a writer: --writer URL#MODEL, or a local language model"
        )
    else:
        videos = captions(source, Path(source).parent if media is None else media)
        report = generate(videos, text_model(writer), out, per_video=count, seed=seed)
    dropped = ", ".join(f"{n} {why}" for why, n in report.dropped.most_common())
    return f"{out}: {report.kept} questions about {report.videos} videos" + (f"; dropped: {dropped}" if dropped else "")


def _answered(part: Path) -> dict[str, str]:
    """Replies so far by key; a last line that was cut off goes, and is asked for again."""
    if not part.exists():
        return {}
    text = part.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        part.write_text(whole, encoding="utf-8")
    return {record["key"]: record["reply"] for record in map(json.loads, whole.splitlines())}
