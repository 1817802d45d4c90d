"""Needles that are heard: a beep, or a read sentence, in a silent sound track."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from data_recipes.synth.shapes_phrasings import PHRASINGS
from data_recipes.synth.shapes_questions import span_words
from eval.niah_judge import says_sentence
from eval.niah_sets import SoundNeedle
from eval.niah_trials import NO_NEEDLE, Judge, Trial, counted, describe, timed
from vlm.media import Audio, Video
from vlm.time import Span


@dataclass(frozen=True)
class Heard:
    """A sound in a silent sound track: how many beeps and when, or what is said.

    Attributes:
        needles: Beeps, or speech.
    """

    needles: tuple[SoundNeedle, ...]
    alone: bool = field(default=False, init=False)

    @property
    def size(self) -> int:
        return len(self.needles)

    @property
    def facts(self) -> dict[str, Any]:
        return {"task": "sound", "needles": describe(self.needles)}

    def trials(self, hay: Video, depth: float, index: int) -> Iterator[Trial]:
        needle, length = self.needles[index], hay.end - hay.start
        span = None if depth == NO_NEEDLE else _sound_span(depth, needle.seconds, length)
        video = replace(hay, audio=_track(hay, needle, span))
        if needle.text:
            yield Trial(video, "What is said?", needle.text, _sentence(needle.text), "said", 0.0)
            return
        numbers = ("none", "one", "two", "three", "four")
        count = partial(counted, number=0 if span is None else 1, numbers=numbers)
        word = numbers[0] if span is None else f"{span_words(span)}: {numbers[1]}"
        yield Trial(video, PHRASINGS["beep_count"][0][0], word, count, "how many", 0.25)
        if span is not None:
            yield timed(video, PHRASINGS["beep_when"][0][0], span_words(span), span)


def _sentence(text: str) -> Judge:
    return lambda model, reply: says_sentence(reply, text)


def _sound_span(depth: float, seconds: float, length: float) -> Span:
    """Where a sound of ``seconds`` lies: at depth 0 it begins with the video, at 1 it ends with it."""
    start = depth * max(0.0, length - seconds)
    return Span(start, min(length, start + seconds))


def _track(hay: Video, needle: SoundNeedle, span: Span | None) -> Audio:
    samples = np.zeros(round((hay.end - hay.start) * needle.rate), np.float32)
    if span is not None:
        first = round(span.start * needle.rate)
        heard = needle.samples[: len(samples) - first]
        samples[first : first + len(heard)] = heard
    return Audio(samples[None], needle.rate, start=hay.start)
