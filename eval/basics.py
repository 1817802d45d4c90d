"""Scores `smol` (or any model) on held-out pictures, real photographs, joined videos and read speech.

    vlm eval basics                    # everything
    vlm eval basics --limit 10         # a quick look

Held out are the pictures (split ``picture``: unseen pictures; ``class``: unseen kinds of things) and the phrasings. Videos are real H.264
files read by the real decoder. Every question that is answered in words is also asked without the video (the blind baseline), and rows
carry their chance level; for spans that is the answer "the middle half". Presence is the mean of the shares of right yes and right no.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_recipes.synth.imagenet import class_of_name
from data_recipes.synth.photographs import Photograph, photographs
from data_recipes.synth.smol import conversations
from data_recipes.synth.smol_names import vocabulary
from data_recipes.synth.smol_questions import Turn
from data_recipes.synth.speech import read_sentences
from eval.report import Row, bar_chart, row, wilson, write_results
from vlm.chat import Assistant
from vlm.errors import DataError, MissingDependencyError
from vlm.report import print_facts
from vlm.time import Span

WORD_KINDS = ("presence", "count", "order")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass
class Tally:
    """Right (1) or wrong (0) per question, seeing and blind, with chance.

    Attributes:
        right: Of the answers to what was shown.
        blind: Of the answers without it.
        chance: Chance level per question.
        truths: True answer per question where the share of right answers is to be the mean over true answers; else empty.
    """

    right: list[float] = field(default_factory=list)
    blind: list[float] = field(default_factory=list)
    chance: list[float] = field(default_factory=list)
    truths: list[str] = field(default_factory=list)

    def row(self, name: str, target: float | None = None, **setting: Any) -> Row:
        """A results row in percent with its interval, chance level and blind baseline."""
        low, high = wilson(round(sum(self.right)), len(self.right))
        about = {"questions": len(self.right), "low": round(100 * low, 1), "high": round(100 * high, 1), **setting}
        if self.chance:
            about["chance"] = round(100 * float(np.mean(self.chance)), 1)
        if self.blind:
            about["blind"] = round(100 * self._share(self.blind), 1)
        return row(name, round(100 * self._share(self.right), 1), "%", target, **about)

    def _share(self, right: list[float]) -> float:
        truths = np.array(self.truths or [""] * len(right))
        return float(np.mean([np.array(right)[truths == truth].mean() for truth in sorted(set(truths.tolist()))]))


def words(text: str) -> str:
    """Lower case, without articles, punctuation and doubled spaces: what two answers are compared by."""
    plain = re.sub(r"[^a-z0-9' ]+", " ", text.lower())
    return " ".join(_ARTICLES.sub(" ", plain).split())


def says(text: str, truth: str) -> bool:
    """Whether an answer is ``truth``, up to case, articles and punctuation."""
    return words(text) == words(truth)


def names(text: str, noun: str) -> bool:
    """Whether an answer names ``noun`` as whole words."""
    return f" {words(noun)} " in f" {words(text)} "


def score_photographs(assistant: Assistant, pictures: Iterable[Photograph]) -> list[Row]:
    """Naming of real photographs, next to EfficientNet's own top-1 on the same pictures."""
    agreement, naming = Tally(), Tally()
    teacher = 0
    shown = list(pictures)
    for picture in tqdm(shown, desc="photographs", unit="picture"):
        reply = assistant.chat("What is in this picture?", image=picture.pixels, max_new_tokens=24).text
        guess = assistant.chat("What is in this picture?", max_new_tokens=24).text
        tallies = [(naming, picture.true_names)]
        if picture.teacher_is_right:
            teacher += 1
            tallies.append((agreement, picture.teacher_names))
        for tally, right in tallies:
            tally.right.append(float(any(names(reply, n) for n in right)))
            tally.blind.append(float(any(names(guess, n) for n in right)))
            tally.chance.append(0.001)
    own = round(100 * teacher / len(shown), 1)
    return [
        agreement.row("photographs: agrees with EfficientNet where it is right", 80),
        naming.row("photographs: names the true class", efficientnet_top1=own),
    ]


def score_pictures(assistant: Assistant, split: str, *, count: int, seed: int) -> Row:
    """The exact noun of an unseen picture in a still clip (of each, where two or three are shown side by side).

    Kinds that ImageNet names are left out of split ``class``: training shows them as prototypes.
    """
    data = conversations(
        split,
        size=2 * count,
        seed=seed,
        medium="frames",
        seconds=(5, 5),
        shots=(1, 1),
        turns=(1, 1),
        kinds=("list",),
        frames=8,
    )
    tally = Tally()
    wanted = [[g.name.noun for s in data.clip(i).shots for g in s.items] for i in range(len(data))]
    unseen = [i for i, nouns in enumerate(wanted) if split == "picture" or not class_of_name().keys() & set(nouns)]
    for index in tqdm(unseen[:count], desc=f"pictures ({split})", unit="clip"):
        sample = data[index]
        turn: Turn = sample.meta["turns"][0]
        video = sample.messages[0]["content"][0]["video"]
        for answers, shown in ((tally.right, {"video": video}), (tally.blind, {})):
            reply = assistant.chat(turn.question, max_new_tokens=32, **shown).text
            found = [names(reply, n) or names(reply, _plural(sample, n)) for n in wanted[index]]
            answers.append(float(all(found)))
        tally.chance.append(1 / len(set(vocabulary(split))))
    kind = "unseen pictures" if split == "picture" else "unseen kinds"
    return tally.row(f"naming, {kind}: exact caption noun")


def _plural(sample: Any, noun: str) -> str:
    return next(i.name.plural for s in sample.meta["clip"].shots for i in s.items if i.name.noun == noun)


def score_videos(assistant: Assistant, *, seconds: float, count: int, seed: int, folder: Path) -> list[Row]:
    """Presence, counting, order and spans on joined videos of one length, as real files."""
    shots = (2, 4) if seconds <= 10 else (3, 6) if seconds <= 30 else (5, 8)
    data = conversations(
        "picture", size=count, seed=seed, medium="file", seconds=(seconds, seconds), shots=shots, turns=(6, 8),
        kinds=("presence", "count", "order", "when"), classes=0.0, speech=0.0, frames=64,
    )  # fmt: skip
    tallies: dict[str, Tally] = defaultdict(Tally)
    ious: list[float] = []
    middle: list[float] = []
    data = replace(data, folder=str(folder))
    for index in tqdm(range(count), desc=f"videos of {seconds:.0f} s", unit="clip"):
        sample = data[index]
        media: dict[str, Any] = {"video": sample.messages[0]["content"][0]["video"], "num_frames": 64}
        chat, blind = assistant.conversation(), assistant.conversation()
        turns = sorted(sample.meta["turns"], key=lambda t: t.kind != "presence")  # other questions tell what is there
        for turn in turns:
            reply = chat.ask(turn.question, max_new_tokens=32, **media)
            media = {}
            if turn.kind == "when":
                truth = Span(*turn.spans[0])
                ious.append(reply.spans[0].iou(truth) if reply.spans else 0.0)
                middle.append(Span(0.25 * seconds, 0.75 * seconds).iou(truth))
                continue
            tally = tallies[turn.kind]
            tally.right.append(float(_right(turn, reply.text)))
            tally.blind.append(float(_right(turn, blind.ask(turn.question, max_new_tokens=16).text)))
            tally.chance.append(1 / max(2, len(turn.choices)))
            tally.truths += [str(turn.truth)] if turn.kind == "presence" else []
    return [*_word_rows(tallies, seconds), *_span_rows(ious, middle, seconds)]


def _right(turn: Turn, text: str) -> bool:
    if turn.kind == "order":
        other = next(c for c in turn.choices if c != turn.truth)
        return names(text, turn.truth) and not names(text, other)
    return says(text, turn.truth)


def _word_rows(tallies: dict[str, Tally], seconds: float) -> list[Row]:
    targets = {"presence": 85}
    return [
        tallies[k].row(f"{k} at {seconds:.0f} s", targets.get(k) if seconds == 30 else None)
        for k in WORD_KINDS
        if k in tallies
    ]


def _span_rows(ious: list[float], middle: list[float], seconds: float) -> list[Row]:
    if not ious:
        return []
    found, guess = np.array(ious), np.array(middle)
    about: dict[str, Any] = {"questions": len(ious), "chance": round(float(guess.mean()), 3)}
    share: dict[str, Any] = {"questions": len(ious), "chance": round(100 * float((guess >= 0.5).mean()), 1)}
    target = 0.60 if seconds == 30 else None
    return [
        row(f"span mIoU at {seconds:.0f} s", round(float(found.mean()), 3), "", target, **about),
        row(f"span R@0.5 at {seconds:.0f} s", round(100 * float((found >= 0.5).mean()), 1), "%", **share),
    ]


def score_speech(assistant: Assistant) -> list[Row]:
    """Word error rate of read sentences: the whole model's answer, and the ears alone."""
    try:
        from jiwer import wer
    except ImportError as error:
        raise MissingDependencyError("jiwer", "eval", "the speech score") from error
    from vlm.media import load_audio

    truths, answers, heard = [], [], []
    for utterance in tqdm(read_sentences(), desc="speech", unit="sentence"):
        truths.append(words(utterance.text))
        answers.append(words(assistant.chat("What is said?", audio=utterance.path, max_new_tokens=80).text))
        if assistant.transcriber is not None:
            samples = load_audio(utterance.path, rate=assistant.transcriber.rate).samples.mean(0)
            heard.append(words(" ".join(p.text for p in assistant.transcriber(samples))))
    rows = [
        row("speech word error rate", round(100 * wer(truths, answers), 1), "%", at_least=False, sentences=len(truths))
    ]
    if heard:
        rows.append(
            row("speech word error rate of the ears alone", round(100 * wer(truths, heard), 1), "%", at_least=False)
        )
    return rows


def evaluate(assistant: Assistant, *, limit: int | None = None, seed: int = 0) -> list[Row]:
    """All scores; what cannot be fetched here becomes a row without a value that says why."""
    rows: list[Row] = []
    clips = limit or 30

    def add(name: str, make: Any) -> None:
        try:
            made = make()
        except (DataError, MissingDependencyError) as error:
            made = row(name, None, reason=str(error))
        rows.extend(made if isinstance(made, list) else [made])

    add("photographs", lambda: score_photographs(assistant, photographs()[: None if limit is None else 5 * limit]))
    for split in ("picture", "class"):
        add(f"naming ({split})", lambda split=split: score_pictures(assistant, split, count=2 * clips, seed=seed))
    with tempfile.TemporaryDirectory(prefix="basics-") as folder:
        for seconds, count in ((10.0, clips), (30.0, 3 * clips), (120.0, max(3, clips // 3))):
            where = Path(folder) / f"{seconds:.0f}"
            add(
                f"videos of {seconds:.0f} s",
                lambda s=seconds, n=count, w=where: score_videos(assistant, seconds=s, count=n, seed=seed, folder=w),
            )
    if assistant.processor.ears:
        add("speech", lambda: score_speech(assistant))
    return rows


def run(*, model: str | None = None, limit: int | None = None, out: Path = Path("docs/results"), seed: int = 0) -> Path:
    """Score a model; writes ``basics.json`` and two plots.

    Args:
        model: ``smol`` (the default), a folder or a hub id.
        limit: Number of videos of 10 s, 30 by default; three times as many of 30 s (where the targets are), a third of 120 s.
        out: Folder of the results.
        seed: Of the clips and questions.
    """
    import vlm

    name = model or "smol"
    rows = evaluate(vlm.load(name), limit=limit, seed=seed)
    command = f"vlm eval basics seed={seed} --model {name}" + (f" --limit {limit}" if limit else "")
    path = write_results("basics", rows, command=command, seed=seed, out_dir=out)
    bar_chart(Path(out) / "basics.png", [r for r in rows if r.get("unit") == "%"], title=f"{name}: right answers")
    spans = [r for r in rows if "mIoU" in str(r.get("name"))]
    bar_chart(Path(out) / "basics-spans.png", spans, title=f"{name}: overlap of spans", unit="mIoU")
    print_facts({str(r["name"]): f"{r.get('value')} {r.get('unit') or ''}  {r.get('setting')}" for r in rows})
    return path
