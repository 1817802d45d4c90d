"""Needles, haystacks and models as `eval.niah` sees them; hiding pictures in a video."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from vlm.errors import ConfigError
from vlm.media import Audio, Video
from vlm.time import Span

MODES = ("insert", "replace")
LETTERS = "ABCDEFGHIJ"
SLACK = 1e-9  # depths are decimal fractions: int(0.29 * 100) must be 29


@dataclass(frozen=True)
class Needle:
    """A picture to hide and a question about it.

    Attributes:
        image: ``uint8 [H, W, 3]``; resized to the haystack's frames.
        question: Asked about the whole video.
        answer: The right answer; with options, one of them.
        options: All options of a multiple-choice question in any order, or None for an open question.
        also: Other words that free generation may say instead of ``answer``.
        presence: A question that is answered yes if the needle is in the video, else no; "" if there is none.
        when: A question that is answered with the time of the needle; "" if there is none.
        lookalike: A picture that looks like the needle and is not what the question asks for.
    """

    image: np.ndarray
    question: str
    answer: str
    options: tuple[str, ...] | None = None
    also: tuple[str, ...] = ()
    presence: str = ""
    when: str = ""
    lookalike: np.ndarray | None = None

    def __post_init__(self) -> None:
        options = self.options
        if options is not None and (self.answer not in options or not 2 <= len(options) <= len(LETTERS)):
            raise ConfigError(f"options {options} of a needle must be 2 to {len(LETTERS)} and contain {self.answer!r}")

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that free generation may say to be right."""
        return (self.answer, *self.also)


@dataclass(frozen=True)
class NeedleSet:
    """Needles that belong together, with the questions about more than one of them ("" where there is none).

    Attributes:
        name: What the results file calls them.
        needles: One or more.
        several: Which of them are in the video?
        order: In which order? With the fields ``{first}`` and ``{second}`` it asks which of two comes first.
        count: How many are there? With the field ``{what}`` it asks how often one of them is there.
        items: How a forced answer to ``several`` or ``order`` is worded; ``{items}`` are the answers, joined by commas.
        number: How a forced answer to ``count`` is worded; fields ``{items}`` and ``{number}``.
        numbers: Words for 0, 1, 2, ...; what they hold is the most that is counted.
        yes: The words for yes and no.
        sentence: Forced answers begin with a capital and end with a full stop.
    """

    name: str
    needles: tuple[Needle, ...]
    several: str = ""
    order: str = ""
    count: str = ""
    items: str = "{items}"
    number: str = "{number}"
    numbers: tuple[str, ...] = ("none", "one", "two", "three", "four")
    yes: tuple[str, str] = ("yes", "no")
    sentence: bool = False

    def forced(self, answer: str) -> str:
        """An answer as teacher forcing words it."""
        return f"{answer[:1].upper()}{answer[1:]}." if self.sentence else answer

    def first(self, limit: int | None) -> NeedleSet:
        """Only the first ``limit`` needles."""
        return replace(self, needles=self.needles[:limit])


class NeedleModel(Protocol):
    """What a model must do to be tested. `eval.assistant.AssistantModel` does it for every model of this package."""

    def answer(self, video: Video, question: str) -> str:
        """The model's own words, greedy."""

    def forced_match(self, video: Video, question: str, answer: str) -> bool:
        """Whether every token of ``answer``, given the ones before it, is the most likely one."""

    def count_tokens(self, video: Video, question: str) -> int:
        """Length of the prompt in tokens."""

    def spans(self, video: Video, reply: str) -> list[Span]:
        """The times that a reply of `answer` names, in seconds of the video's clock."""


class Haystack(Protocol):
    """Makes videos to hide needles in."""

    @property
    def name(self) -> str:
        """What the results file calls it."""

    def __call__(self, num_frames: int) -> Video:
        """A video of ``num_frames`` frames without a needle, always the same one."""


def position(depth: float, num_frames: int, mode: str) -> int:
    """Where a needle goes: before which frame (``insert``: ``int(depth · T)`` as LongVA has it, 0..T), or in place of which one.

    Raises:
        ConfigError: Unknown mode, or a depth outside 0..1.
    """
    if mode not in MODES:
        raise ConfigError(f"mode {mode!r} is not one of {', '.join(MODES)}")
    if not 0.0 <= depth <= 1.0:
        raise ConfigError(f"depth {depth} is not between 0 and 1")
    return int(depth * num_frames + SLACK) if mode == "insert" else round(depth * (num_frames - 1))


def hide(video: Video, pictures: Sequence[tuple[int, np.ndarray]], mode: str = "insert") -> tuple[Video, list[int]]:
    """The video with frames added (``insert``) or exchanged (``replace``).

    Args:
        video: T frames.
        pictures: (`position`, picture ``uint8 [h, w, 3]``), resized to the frames. Pictures inserted at the same position follow
            one another as given.
        mode: With ``insert`` whatever comes after a needle moves by one frame's time, sound too, and the video becomes longer.

    Returns:
        The new video and the index of each picture in it.

    Raises:
        ConfigError: Two pictures replace the same frame.
    """
    order = sorted(range(len(pictures)), key=lambda i: pictures[i][0])
    places = np.array([pictures[i][0] for i in order], np.intp)
    shown = [_resized(pictures[i][1], video.frames.shape[1:3]) for i in order]
    if mode == "replace":
        if len(set(places.tolist())) < len(places):
            raise ConfigError(f"{len(places)} pictures do not fit into {len(video.frames)} frames; hide fewer of them")
        frames = video.frames.copy()
        for place, picture in zip(places, shown, strict=True):
            frames[place] = picture
        return replace(video, frames=frames), [p for p, _ in pictures]
    found = places + np.arange(len(places))
    indices = np.empty(len(places), np.intp)
    indices[order] = found
    return _insert(video, found, places, shown), indices.tolist()


def _insert(video: Video, found: np.ndarray, places: np.ndarray, shown: list[np.ndarray]) -> Video:
    count, step = len(video.frames), (video.end - video.start) / len(video.frames)
    kept = np.setdiff1d(np.arange(count + len(shown)), found)
    frames = np.empty((count + len(shown), *video.frames.shape[1:]), np.uint8)
    frames[kept] = video.frames
    for index, picture in zip(found, shown, strict=True):
        frames[index] = picture
    moments = np.append(video.timestamps, video.timestamps[-1] + step)[places]
    times = np.empty(len(frames))
    times[kept] = video.timestamps + step * (kept - np.arange(count))
    times[found] = moments + step * np.arange(len(shown))
    longer = step * len(shown)
    return replace(
        video,
        frames=frames,
        timestamps=times,
        duration=video.duration + longer,
        end=video.end + longer,
        audio=None if video.audio is None else _with_pauses(video.audio, moments, step),
    )


def _with_pauses(audio: Audio, moments: np.ndarray, seconds: float) -> Audio:
    """Silence of ``seconds`` at each of the ``moments`` (s, in order), so that sound stays with its picture."""
    total = audio.samples.shape[1]
    cuts = np.clip(np.round((moments - audio.start) * audio.rate).astype(int), 0, total)
    starts = [round(i * seconds * audio.rate) for i in range(len(cuts) + 1)]
    pieces = np.split(audio.samples, cuts, axis=1)
    pauses = [np.zeros((len(audio.samples), b - a), np.float32) for a, b in itertools.pairwise(starts)]
    mixed = [part for pair in zip(pieces, pauses, strict=False) for part in pair]
    return replace(audio, samples=np.concatenate([*mixed, pieces[-1]], axis=1))


def insert_needle(video: Video, image: np.ndarray, depth: float, *, mode: str = "insert") -> tuple[Video, int]:
    """The video with one needle at ``depth`` (0 is the first frame, 1 the last), and the needle's index; see `hide`."""
    hidden, indices = hide(video, [(position(depth, len(video.frames), mode), image)], mode)
    return hidden, indices[0]


def rotations(needle: Needle) -> Iterator[tuple[str, str]]:
    """(question, right answer): once for an open question; for options, once with the right one behind each letter."""
    if needle.options is None:
        yield needle.question, needle.answer
        return
    others = [o for o in needle.options if o != needle.answer]
    for place, letter in enumerate(LETTERS[: len(needle.options)]):
        order = [*others[:place], needle.answer, *others[place:]]
        lines = [f"{name}. {option}" for name, option in zip(LETTERS, order, strict=False)]
        yield "\n".join([needle.question, *lines, "Answer with the letter."]), letter


def guess_chance(needle: Needle, needles: Sequence[Needle]) -> float:
    """Expected score of guessing: one of the options, or one of the answers that occur among open questions (0..1)."""
    return 1 / (len(needle.options) if needle.options else len({n.answer for n in needles if n.options is None}))


def _resized(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    if image.shape[:2] == tuple(size):
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))
