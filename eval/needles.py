"""Needles, haystacks and models as `eval.niah` sees them; hiding a needle, asking about it, judging what was said."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from vlm.errors import ConfigError
from vlm.media import Video

MODES = ("insert", "replace")
_LETTERS = "ABCDEFGHIJ"
_SAID = r"\W*(?i:the\s+)?(?i:answer|option|letter)(?i:\s+is)?\W*"
_LETTER = re.compile(rf"{_SAID}([A-Z])\b|(?:{_SAID}|\W*)([A-Za-z])\s*(?:$|[^\w\s'])")
"""A letter that is said to be the answer, or one on its own or before a sign: group 1 or 2."""


@dataclass(frozen=True)
class Needle:
    """A picture to hide and a question about it.

    Attributes:
        image: ``uint8 [H, W, 3]``; resized to the haystack's frames.
        question: Asked about the whole video.
        answer: The right answer; with options, one of them.
        options: All options of a multiple-choice question in any order, or None for an open question.
    """

    image: np.ndarray
    question: str
    answer: str
    options: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        options = self.options
        if options is not None and (self.answer not in options or not 2 <= len(options) <= len(_LETTERS)):
            raise ConfigError(f"options {options} of a needle must be 2 to {len(_LETTERS)} and contain {self.answer!r}")


class NeedleModel(Protocol):
    """What a model must do to be tested. `eval.assistant.AssistantModel` does it for every model of this package."""

    def answer(self, video: Video, question: str) -> str:
        """The model's own words, greedy."""

    def forced_match(self, video: Video, question: str, answer: str) -> bool:
        """Whether every token of ``answer``, given the ones before it, is the most likely one."""

    def count_tokens(self, video: Video, question: str) -> int:
        """Length of the prompt in tokens."""


class Haystack(Protocol):
    """Makes videos to hide needles in."""

    @property
    def name(self) -> str:
        """What the results file calls it."""

    def __call__(self, num_frames: int) -> Video:
        """A video of ``num_frames`` frames without a needle, always the same one."""


def insert_needle(video: Video, image: np.ndarray, depth: float, *, mode: str = "insert") -> tuple[Video, int]:
    """The video with a frame added (``insert``, at ``int(depth · T)`` as LongVA has it) or exchanged (``replace``).

    Args:
        video: T frames.
        image: ``uint8 [h, w, 3]``, resized to the frames.
        depth: 0 is the first frame, 1 the last.
        mode: With ``insert`` the frames after the needle move by one frame's time and the video becomes that much
            longer.

    Returns:
        The new video and the index of the needle.
    """
    if mode not in MODES:
        raise ConfigError(f"mode {mode!r} is not one of {', '.join(MODES)}")
    if not 0.0 <= depth <= 1.0:
        raise ConfigError(f"depth {depth} is not between 0 and 1")
    frames, times, count = video.frames, video.timestamps, len(video.frames)
    picture = _resized(image, frames.shape[1:3])[None]
    if mode == "replace":
        index = round(depth * (count - 1))
        return replace(video, frames=np.concatenate([frames[:index], picture, frames[index + 1 :]])), index
    index = int(depth * count + 1e-9)
    step = (video.end - video.start) / count
    moment = times[index] if index < count else times[-1] + step
    return replace(
        video,
        frames=np.concatenate([frames[:index], picture, frames[index:]]),
        timestamps=np.concatenate([times[:index], [moment], times[index:] + step]),
        duration=video.duration + step,
        end=video.end + step,
    ), index


def rotations(needle: Needle) -> Iterator[tuple[str, str]]:
    """(question, right answer): once for an open question; for options, once with the right one behind each letter."""
    if needle.options is None:
        yield needle.question, needle.answer
        return
    others = [o for o in needle.options if o != needle.answer]
    for place, letter in enumerate(_LETTERS[: len(needle.options)]):
        order = [*others[:place], needle.answer, *others[place:]]
        lines = [f"{name}. {option}" for name, option in zip(_LETTERS, order, strict=False)]
        yield "\n".join([needle.question, *lines, "Answer with the letter."]), letter


def is_right(reply: str, answer: str, wrong: Sequence[str] = ()) -> bool:
    """Whether free words give the answer: its letter, or its words and none of the ``wrong`` answers."""
    if answer in _LETTERS and len(answer) == 1:
        found = _LETTER.match(reply)
        return found is not None and (found[1] or found[2]).upper() == answer
    said = _words(reply)
    return _words(answer) in said and not any(_words(w) in said for w in wrong if w != answer)


def guess_chance(needles: Sequence[Needle]) -> float:
    """Expected score of guessing: one of the options, or one of the answers that occur (0..1)."""
    answers = len({n.answer for n in needles if n.options is None})
    return float(np.mean([1 / (len(n.options) if n.options else answers) for n in needles]))


def _resized(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    if image.shape[:2] == tuple(size):
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _words(text: str) -> str:
    """Lower-case words between single spaces, with a space at both ends."""
    words = re.findall(r"[^\W_]+", text.lower())
    return f" {' '.join(words)} "
