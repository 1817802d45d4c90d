"""Plots of grounding: predicted against true bounds, some spans side by side, and predicted seconds modulo five."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.report import figure, save
from eval.spans import Question
from vlm.time import Span

_SHOWN = 24  # spans drawn side by side


def draw(path: str | Path, answers: Sequence[tuple[Question, Sequence[Span]]], *, title: str) -> Path:
    """Draw three panels.

    Args:
        path: PNG to write.
        answers: Questions with at least one true span, and what was said.
        title: Of the whole.
    """
    made = figure(14.0, 4.8)
    bounds, bars, rest = made.subplots(1, 3, gridspec_kw={"width_ratios": [1, 1.3, 1]})
    made.suptitle(title)
    said = [(q.truth[0], spans[0], q.duration) for q, spans in answers if spans and q.truth]
    for edge, colour in (("start", "#4878a8"), ("end", "#d08050")):
        true, told = ([100 * getattr(s[i], edge) / s[2] for s in said] for i in (0, 1))
        bounds.scatter(true, told, s=12, color=colour, label=edge, alpha=0.6)
    bounds.plot([0, 100], [0, 100], color="black", linewidth=0.8, linestyle="dashed")
    bounds.set(xlabel="true, % of the clip", ylabel="predicted, % of the clip", xlim=(-2, 102), ylim=(-2, 102))
    bounds.legend()
    for y, (question, spans) in enumerate(answers[:_SHOWN]):
        for some, colour, shift in ((question.truth, "#55a868", 0.2), (spans, "#4878a8", -0.2)):
            parts = [(100 * s.start / question.duration, max(100 * s.length / question.duration, 0.4)) for s in some]
            bars.broken_barh(parts, (y + shift - 0.2, 0.4), color=colour)
    bars.set(xlabel="% of the clip; true green, predicted blue", ylabel="question", xlim=(0, 100))
    seconds = [t % 5 for q, spans in answers for s in spans for t in (s.start, s.end) if 0 < t < q.duration]
    rest.hist(seconds, bins=np.arange(0, 5.25, 0.25), color="#4878a8")
    rest.set(xlabel="predicted seconds modulo 5, ends of clips left out", ylabel="bounds", xlim=(0, 5))
    return save(made, path)
