"""`Sample`: the one record that every reader produces and every consumer takes.

Messages are OpenAI/HF style. A content part is ``{"type": "text", "text": ...}``, ``{"type": "video", "video": ...}``,
``{"type": "image", "image": ...}`` or ``{"type": "audio", "audio": ...}``; the medium itself is a path or a loaded object of `vlm.media`.
In assistant text a time is written as ``{t:12.34}`` (seconds), a span as ``{t:12.34-15.00}``; the processor turns it into what the
model's time codec says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vlm.errors import ConfigError
from vlm.time import Span

Message = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One conversation over some media.

    Attributes:
        id: Unique and stable; errors and NaN reports name it.
        messages: OpenAI/HF-style chat messages.
        meta: Anything an evaluator needs (task, answer, true spans in seconds, duration, ...).
    """

    id: str
    messages: list[Message]
    meta: dict[str, Any] = field(default_factory=dict)


class SampleDataset(Protocol):
    """A finite, indexable set of samples; item ``i`` is a pure function of the seed and ``i``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def rng_for(seed: int, *path: int) -> np.random.Generator:
    """Random generator that depends only on ``seed`` and ``path`` (for example epoch and index): reproducible and resumable.

    Raises:
        ConfigError: ``seed`` is negative.
    """
    if seed < 0:
        raise ConfigError(f"seed={seed} must be 0 or greater")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *path])))


def check_kinds(kinds: Iterable[str] | None, known: Iterable[str]) -> None:
    """Check the names of kinds of question.

    Raises:
        ConfigError: One of ``kinds`` is not ``known``, or there is none.
    """
    names = set(known)
    if kinds is not None and (not (asked := list(kinds)) or set(asked) - names):
        raise ConfigError(f"kinds={asked} must be some of {', '.join(sorted(names))}")


REASON = "reason_"
"""What kinds of question that need reasoning begin with, where they stand beside others."""


def reason_kinds(kinds: Iterable[str] | None) -> tuple[str, ...]:
    """Those of ``kinds`` that begin with `REASON`, without it."""
    return tuple(kind.removeprefix(REASON) for kind in kinds or () if kind.startswith(REASON))


def text_part(text: str) -> dict[str, str]:
    """Content part holding ``text``."""
    return {"type": "text", "text": text}


def user(*parts: dict[str, Any] | str) -> Message:
    """User message made of parts; bare strings become text parts."""
    return {"role": "user", "content": [text_part(p) if isinstance(p, str) else p for p in parts]}


def assistant(text: str) -> Message:
    """Assistant message with one text part."""
    return {"role": "assistant", "content": [text_part(text)]}


def conversation(media: Sequence[dict[str, Any]], turns: Iterable[tuple[str, str]]) -> list[Message]:
    """Questions and answers in turn, the media before the first question."""
    messages: list[Message] = []
    for question, answer in turns:
        messages += [user(*(() if messages else media), question), assistant(answer)]
    return messages


def mark(seconds: float) -> str:
    """The neutral mark of a time: ``{t:3.00}``."""
    return f"{{t:{seconds:.2f}}}"


def mark_span(span: Span) -> str:
    """The neutral mark of a span: ``{t:3.00-4.50}``."""
    return f"{{t:{span.start:.2f}-{span.end:.2f}}}"
