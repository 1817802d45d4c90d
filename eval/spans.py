"""Temporal grounding: how well the spans of an answer match the true ones.

Two protocols. ``tolerant`` reads answers with `TimeCodec.parse`, scores an answer without times 0 and knows absent
events (ours). ``lita`` repeats LITA's ActivityNet-RTL evaluation (2403.19046, released code): strict ``<12.3>`` times,
the whole clip where they are missing; of a codec without time tokens, which that code does not know, the times as it
writes them. Both means are reported: over questions (micro) and over videos (macro).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vlm.errors import ConfigError, DataError
from vlm.time import Span, TimeCodec, parse_lita
from vlm.time.ceiling import read_back
from vlm.time.codec import RelativeCodec

THRESHOLDS = (0.3, 0.5, 0.7)
PROTOCOLS = ("tolerant", "lita")


@dataclass(frozen=True)
class Question:
    """One question with its true spans.

    Attributes:
        video: Name of the video; macro means group by it.
        truth: True spans in seconds; empty if the event does not happen.
        duration: Length of the video in seconds.
    """

    video: str
    truth: tuple[Span, ...]
    duration: float


@dataclass(frozen=True)
class Judged:
    """How one answer did.

    Attributes:
        video: From the question.
        iou: Temporal overlap in 0..1. For an absent event 1 if the answer says so, else 0.
        fallback: No time could be read from the answer.
        how: How its times were written (`vlm.time.ParseResult.how`).
    """

    video: str
    iou: float
    fallback: bool
    how: str


def set_iou(predicted: Sequence[Span], truth: Sequence[Span]) -> float:
    """Intersection over union of two sets of spans as stretches of time: 1 if both are empty, 0 if one is (ours).

    With one span on each side this is `Span.iou`.
    """
    if not predicted or not truth:
        return float(not predicted and not truth)
    union = _length([*predicted, *truth])
    overlap = _length(predicted) + _length(truth) - union
    return overlap / union if union > 0 else 0.0


def judge(answer: str, question: Question, codec: TimeCodec, *, protocol: str = "tolerant") -> Judged:
    """Score one answer.

    Args:
        answer: The model's raw words, time tokens included.
        question: What was asked.
        codec: The model's time codec.
        protocol: One of `PROTOCOLS`.

    Raises:
        ConfigError: Unknown protocol.
        DataError: Protocol ``lita`` on a question without exactly one true span.
    """
    if protocol == "lita":
        return _judge_lita(answer, question, codec)
    if protocol != "tolerant":
        raise ConfigError(f"protocol {protocol!r} is not one of {', '.join(PROTOCOLS)}")
    result = codec.parse(answer, question.duration)
    iou = 0.0 if result.fallback else set_iou(result.spans, question.truth)
    return Judged(question.video, iou, result.fallback, result.how)


def rtl_truth(text: str, video: str, duration: float) -> Question:
    """Question of an ActivityNet-RTL ground truth, ``[<start> <end>] explanation`` in seconds.

    Raises:
        DataError: It has fewer than two times (LITA's code stops with an assertion).
    """
    result = parse_lita(text, duration)
    if result.fallback:
        raise DataError(f"the ground truth of {video!r} has fewer than two times like <12.3>: {text!r}")
    return Question(video, tuple(result.spans), duration)


def summarise(judged: Iterable[Judged]) -> dict[str, float]:
    """Means over all answers, 0..1.

    Returns:
        ``miou`` and ``R@0.3``, ``R@0.5``, ``R@0.7`` over questions (micro); ``miou_macro`` and ``R@..._macro`` over
        videos (LITA's ``iou`` and ``precision@0.5`` are ``miou_macro`` and ``R@0.5_macro``); ``fallback_rate``;
        ``questions`` and ``videos``.

    Raises:
        DataError: There is nothing to summarise.
    """
    items = list(judged)
    if not items:
        raise DataError("no answers to summarise; give at least one judged answer")
    scores = {"miou": np.array([j.iou for j in items])}
    scores |= {f"R@{t}": (scores["miou"] >= t).astype(float) for t in THRESHOLDS}
    names, group = np.unique([j.video for j in items], return_inverse=True)
    sizes = np.bincount(group)
    out: dict[str, float] = {}
    for name, values in scores.items():
        out[name] = float(values.mean())
        out[f"{name}_macro"] = float((np.bincount(group, weights=values) / sizes).mean())
    out["fallback_rate"] = float(np.mean([j.fallback for j in items]))
    return {**out, "questions": float(len(items)), "videos": float(len(names))}


def quantisation_ceilings(codec: TimeCodec, questions: Sequence[Question]) -> float:
    """Mean IoU of a perfect predictor of these questions, each with one true span, once its times went through the codec."""
    return float(np.mean([q.truth[0].iou(read_back(codec, q.truth[0], q.duration)) for q in questions]))


def _judge_lita(answer: str, question: Question, codec: TimeCodec) -> Judged:
    if len(question.truth) != 1:
        raise DataError(
            f"protocol 'lita' needs one true span per question, {question.video!r} has {len(question.truth)}"
        )
    if isinstance(codec, RelativeCodec):
        result = parse_lita(codec.angle_text(answer, question.duration), question.duration)
    else:  # words that the released code cannot read are read as the codec writes them
        result = codec.parse(answer, question.duration)
        if result.fallback or not result.spans:
            result = parse_lita("", question.duration)
    return Judged(question.video, result.spans[0].iou(question.truth[0]), result.fallback, result.how)


def _length(spans: Sequence[Span]) -> float:
    """Seconds covered by at least one of the spans."""
    total, reached = 0.0, -np.inf
    for span in sorted(spans):
        total += max(0.0, span.end - max(span.start, reached))
        reached = max(reached, span.end)
    return float(total)
