"""``vlm eval grounding``: when does it happen? Spans of a model's answers against the true ones, by LITA's protocol and by ours.

    vlm eval grounding                                     # nano: drawn clips, when something shows
    vlm eval grounding data=reasoning                      # drawn clips, questions that need reasoning
    vlm eval grounding data=joined seconds=120 --model smol             # joined pictures; data=joined-reasoning as well
    vlm eval grounding data=annot_val.json format=rtl media=videos/ judge=http://localhost:8000/v1#qwen --model my-model
    vlm eval grounding data=train.json format=captions task=dense --model my-model

LITA's protocol (2403.19046, released code) takes the whole clip for an answer without times and averages by video; ours scores it 0 and
averages over questions. Both are reported, with how many answers that were.
"""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.captioning import Caption, dense_cider, soda_c, span_f1
from eval.grounding_plots import draw
from eval.grounding_sets import WORLDS, Asked, annotated, world
from eval.judges import Case, judge_called, relative_score
from eval.report import Row, row, write_results
from eval.spans import THRESHOLDS, Judged, judge, quantisation_ceilings, summarise
from vlm.chat import Assistant
from vlm.errors import ConfigError, DataError
from vlm.report import print_facts
from vlm.time import Span, TimeCodec

_DRAWS = 1000  # of the bootstrap
_LEADS_TO_TIME = re.compile(r"(?:^|\s)(?:from|between|at|during)$", re.IGNORECASE)
_DRAWN = ("shapes", "reasoning")
_ROUND = 5  # seconds: answers at multiples of it say that a model has learnt round numbers (TimeChat)


@dataclass(frozen=True)
class Answered:
    """A question with what a model said.

    Attributes:
        asked: The question.
        raw: The model's own words, time tokens included.
    """

    asked: Asked
    raw: str

    def words(self, codec: TimeCodec) -> str:
        """What it said besides times."""
        return _without_times(self.raw, codec, self.asked.truth.duration)


def run(
    *,
    model: str | None,
    limit: int | None,
    out: Path,
    data: str = "",
    format: str = "",
    task: str = "",
    media: str = "",
    judge: str = "",
    level: str = "twenty",
    seconds: float = 30.0,
    num_frames: int | None = None,
    seed: int = 0,
    target: float | None = None,
) -> None:
    """Ask, score, write ``grounding.json`` (or ``grounding-DATA.json``) and its plots.

    Args:
        model: What is asked; default ``nano``.
        limit: Clips of a world (60 by default), or questions of a file (all by default).
        out: Folder of the results.
        data: ``shapes``, ``reasoning``, ``joined``, ``joined-reasoning``, ``footage``, or a file of annotations; default ``joined`` for
            ``smol`` and ``shapes`` for others.
        format: Of a file, see `data_recipes.mixtures.temporal`.
        task: Of a file, ``localise``, ``reasoning`` or ``dense``; default: ``reasoning`` for format ``rtl``, else ``localise``.
        media: Folder of a file's videos; default: its own.
        judge: Who rates explanations, ``words`` or a language model; default: nobody.
        level: Of drawn clips, ``twenty`` or ``brief``.
        seconds: Length of joined clips and of footage.
        num_frames: Frames of a video; default 32 of drawn clips, 64 of others.
        seed: Of clips, wordings and the bootstrap.
        target: Mean IoU that the answers should reach.

    Raises:
        ConfigError: An option makes no sense.
        DataError: A file is damaged, or there is nothing to ask.
    """
    import vlm

    model = model or "nano"
    data = data or ("joined" if model == "smol" else "shapes")
    if not format and data not in WORLDS:
        raise ConfigError(
            f"data={data!r} is not one of {', '.join(WORLDS)}; for a file say its format=, for example rtl"
        )
    frames = num_frames or (32 if data in _DRAWN else 64)
    task = task or ("reasoning" if format == "rtl" else "localise")
    assistant = vlm.load(model)
    with tempfile.TemporaryDirectory(prefix="grounding-") as folder:
        if format:
            asked = annotated(data, format=format, task=task, media=media or None, seed=seed, limit=limit)
        else:
            asked = world(
                data, Path(folder), videos=limit or 60, seed=seed, seconds=seconds, frames=frames, level=level
            )
        answers = list(answer(assistant, tqdm(asked, desc="when", unit="question"), frames))
    if not answers:
        raise DataError(f"{data} has no questions to ask")
    rows = rows_of(answers, assistant.processor.codec, dense=bool(format) and task == "dense", seed=seed, target=target)
    if judge:
        rows += judge_rows(judge, answers, assistant.processor.codec)
    command = f"vlm eval grounding data={data}" + "".join(
        f" {key}={value}" for key, value in (("format", format), ("task", task if format else ""), ("judge", judge)) if value
    )  # fmt: skip
    command += (f" seconds={seconds:g}" if _lasts(data) else "") + (
        f" level={level}" if data in _DRAWN and level != "twenty" else ""
    )
    command += f" num_frames={frames} seed={seed} --model {model}"
    command += f" --limit {limit}" if limit else ""
    title = "-".join(["grounding", *(["smol"] if model == "smol" else []), *_suffix(data, seconds, level)])
    setting = {"model": model, "data": Path(data).name if format else data, "num_frames": frames}
    path = write_results(title, rows, command=command, seed=seed, setting=setting, out_dir=out)
    spans = [(a.asked.truth, _spans(a, assistant.processor.codec)) for a in answers if a.asked.truth.truth]
    draw(path.with_suffix(".png"), spans, title=f"{model}: {setting['data']}")
    print_facts({str(r["name"]): f"{r['value']:.3f} {r['unit']}" if r["value"] is not None else "" for r in rows})


def _lasts(data: str) -> bool:
    """Whether its clips last as long as one says."""
    return data.startswith("joined") or data == "footage"


def _suffix(data: str, seconds: float, level: str) -> list[str]:
    """What tells the results of one choice of data from those of another."""
    if _lasts(data):
        return [*[part for part in data.split("-") if part != "joined"], f"{seconds:g}"]
    if data in _DRAWN:
        return [*([data] if data != "shapes" else []), *([level] if level != "twenty" else [])]
    return [Path(data).stem]


def answer(
    assistant: Assistant, asked: Iterator[Asked], frames: int, *, max_new_tokens: int = 256
) -> Iterator[Answered]:
    """Every question, answered greedily in a conversation of its own; a video is decoded once for the questions that follow each other."""
    name, video = "", None
    for one in asked:
        if video is None or name != one.truth.video:
            lasts = {
                k: v for k, v in one.part.items() if k == "frame_fps"
            }  # a folder of frames, as long as it is annotated
            name, video = one.truth.video, assistant.load(one.part["video"], num_frames=frames, **lasts)
        yield Answered(one, assistant.chat(one.question, video=video, max_new_tokens=max_new_tokens).raw)


def rows_of(
    answers: Sequence[Answered], codec: TimeCodec, *, dense: bool = False, seed: int = 0, target: float | None = None
) -> list[Row]:
    """All rows of a results file.

    Args:
        answers: What was asked and said.
        codec: How the model writes times.
        dense: The answers are dense captions, and are scored as such, too.
        seed: Of the bootstrap.
        target: Mean IoU over questions that should be reached.
    """
    ours = [judge(a.raw, a.asked.truth, codec) for a in answers]
    rows = _rows(ours, answers, seed, target)
    kinds = sorted({a.asked.kind for a in answers})
    for kind in kinds if len(kinds) > 1 else []:
        some = [j for j, a in zip(ours, answers, strict=True) if a.asked.kind == kind]
        rows.append(row(f"mIoU, {kind}", summarise(some)["miou"], "", questions=len(some)))
    single = [a for a in answers if len(a.asked.truth.truth) == 1]
    if single:
        lita = [judge(a.raw, a.asked.truth, codec, protocol="lita") for a in single]
        found = summarise(lita)
        about: dict[str, Any] = {"questions": len(single), "videos": int(found["videos"])}
        rows += [
            row("LITA's protocol, mIoU", found["miou_macro"], "", **about, **_bounds(lita, seed)),
            row("LITA's protocol, precision@0.5", found["R@0.5_macro"], "", **about),
            row("LITA's protocol, answers without two times", found["fallback_rate"], "", **about),
        ]
        rows += _guesses(single)
        ceiling = quantisation_ceilings(codec, [a.asked.truth for a in single])
        rows.append(row("best that the time codec can say, mIoU", ceiling, "", codec=codec.name))
    if dense:
        rows += _dense_rows(answers, codec)
    return [*rows, *_roundness(answers, codec)]


def _rows(judged: list[Judged], answers: Sequence[Answered], seed: int, target: float | None) -> list[Row]:
    found = summarise(judged)
    about: dict[str, Any] = {"questions": len(judged), "videos": int(found["videos"])}
    rows = [row("mIoU", found["miou"], "", target, **about, **_bounds(judged, seed))]
    rows.append(row("mIoU by video", found["miou_macro"], "", **about))
    rows += [row(f"R@{t}", found[f"R@{t}"], "", **about) for t in THRESHOLDS]
    rows.append(row("answers without a time", found["fallback_rate"], "", **about))
    absent = [j.iou for j, a in zip(judged, answers, strict=True) if not a.asked.truth.truth]
    if absent:
        rows.append(row("absent events called absent", float(np.mean(absent)), "", questions=len(absent)))
    return rows


def _bounds(judged: Sequence[Judged], seed: int) -> dict[str, Any]:
    """A percentile bootstrap over videos of the mean over questions: those about one video are no independent evidence."""
    names, group = np.unique([j.video for j in judged], return_inverse=True)
    total, count = np.bincount(group, weights=[j.iou for j in judged]), np.bincount(group)
    picks = np.random.default_rng(seed).integers(0, len(names), (_DRAWS, len(names)))
    low, high = np.percentile(total[picks].sum(1) / count[picks].sum(1), [2.5, 97.5])
    return {"low": round(float(low), 3), "high": round(float(high), 3), "interval": "bootstrap over videos"}


def _guesses(answers: Sequence[Answered]) -> list[Row]:
    """What needs no eyes: a span that is the same share of every clip, the best of them chosen with the truth in hand."""
    truth = [(a.asked.truth.truth[0], a.asked.truth.duration) for a in answers]

    def overlap(share: tuple[float, float]) -> float:
        return float(np.mean([Span(share[0] * d, share[1] * d).iou(span) for span, d in truth]))

    every = itertools.combinations(np.linspace(0.0, 1.0, 21).tolist(), 2)
    return [
        row("chance: the whole clip, mIoU", overlap((0.0, 1.0)), ""),
        row("chance: the middle half, mIoU", overlap((0.25, 0.75)), ""),
        row("chance: the best span for all, mIoU", max(map(overlap, every)), ""),
    ]


def _roundness(answers: Sequence[Answered], codec: TimeCodec) -> list[Row]:
    """How many bounds inside the clip lie within half a second of a multiple of five seconds; by chance a fifth."""
    said = [(t, a.asked.truth.duration) for a in answers for s in _spans(a, codec) for t in (s.start, s.end)]
    bounds = [t for t, duration in said if 0 < t < duration]
    if not bounds:
        return []
    apart = np.abs((np.array(bounds) + _ROUND / 2) % _ROUND - _ROUND / 2)
    return [
        row(f"bounds near a multiple of {_ROUND} s", float((apart <= 0.5).mean()), "", chance=0.2, bounds=len(bounds))
    ]


def _dense_rows(answers: Sequence[Answered], codec: TimeCodec) -> list[Row]:
    said = [captions_of(a.raw, codec, a.asked.truth.duration) for a in answers]
    true = [
        captions_of(codec.write(a.asked.answer, a.asked.truth.duration), codec, a.asked.truth.duration) for a in answers
    ]
    pairs = list(zip(said, true, strict=True))
    f1 = [span_f1([c.span for c in p], [c.span for c in t]) for p, t in pairs]
    about: dict[str, Any] = {
        "videos": len(pairs),
        "captions": sum(map(len, said)),
        "true_captions": sum(map(len, true)),
    }
    return [
        row("dense captions, SODA_c", 100 * float(np.mean([soda_c(p, t) for p, t in pairs])), "%", **about),
        row("dense captions, CIDEr-D", 10 * dense_cider(said, true), "%", **about),
        row("dense captions, F1 of spans", 100 * float(np.mean(f1)), "%", **about),
    ]


def captions_of(raw: str, codec: TimeCodec, duration: float) -> list[Caption]:
    """Captions with their spans, whether the times stand before each sentence (LITA) or after it."""
    result = codec.parse(raw, duration)
    if not result.places:
        return []
    before = not raw[: result.places[0][0]].strip(" :,.;-")
    gaps = _gaps(raw, result.places)
    texts = gaps[1:] if before else gaps[:-1]
    return [Caption(span, text) for span, text in zip(result.spans, texts, strict=True) if text.strip(" .")]


def judge_rows(spec: str, answers: Sequence[Answered], codec: TimeCodec) -> list[Row]:
    """The relative score of explanations, and what the judge could not rate."""
    who = judge_called(spec)
    cases = [
        Case("", a.asked.question, _without_times(codec.write(a.asked.answer, d), codec, d), a.words(codec))
        for a in answers
        for d in [a.asked.truth.duration]
    ]
    verdict = relative_score(who, cases)
    about: dict[str, Any] = {"judge": who.name, "asked": verdict.asked, "failed": verdict.failed}
    return [
        row("relative score of explanations", None if np.isnan(verdict.score) else verdict.score, "%", **about),
        row("ratings that failed", 100 * verdict.failed / verdict.asked, "%", **about),
        row("the first answer is preferred in both orders", 100 * verdict.first, "%", chance=0, **about),
    ]


def _without_times(raw: str, codec: TimeCodec, duration: float) -> str:
    return " ".join(gap for gap in _gaps(raw, codec.parse(raw, duration).places) if gap)


def _gaps(raw: str, places: Sequence[tuple[int, int]]) -> list[str]:
    """What stands before, between and after the times, without the little words and marks that lead to them."""
    edges = [0, *(edge for place in places for edge in place), len(raw)]
    gaps = [" ".join(raw[a:b].split()).strip(" :,;-") for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return [*(_LEADS_TO_TIME.sub("", gap) for gap in gaps[:-1]), gaps[-1]]


def _spans(a: Answered, codec: TimeCodec) -> list[Span]:
    return codec.parse(a.raw, a.asked.truth.duration).spans
