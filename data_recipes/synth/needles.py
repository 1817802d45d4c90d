"""Needles in long haystacks, to train on: pictures of digits hidden in shapes clips of any length, and digits said in long transcripts.

A clip is a scene of the shapes world without digits, or several one after the other, with none to three whole frames added that
show a digit each (as LongVA's V-NIAH hides its needles); the questions are about the digits, and of a single scene some about what it
shows. A transcript is the same as words with times: text only, for extending the context before any long video is seen (LongVILA's
fourth stage). Everything is a pure function of ``(seed, index)``; the evaluation's needles and haystacks (`eval.haystacks`) come from
other seeds and the held-out split. (Ours.)
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from data_recipes.sample import Sample, conversation, rng_for
from data_recipes.synth.shapes_phrasings import NUMBERS, PHRASINGS
from data_recipes.synth.shapes_questions import Asker, Turn, article, span_words
from data_recipes.synth.shapes_render import COLOURS, DIGITS, draw, draw_background, random_background
from data_recipes.synth.shapes_scene import Scene
from data_recipes.synth.shapes_world import Level, pairs, random_scene
from vlm.errors import ConfigError
from vlm.media import Video
from vlm.time import Span

QUESTIONS: dict[str, tuple[str, ...]] = {
    "digit": PHRASINGS["digit"][0],
    "digit_presence": PHRASINGS["digit_presence"][0],
    "digit_when": PHRASINGS["digit_when"][0],
    "digits": ("What digits are shown, in order?", "Which digits can you see, in order?"),
    "digit_count": ("How many digits are shown?", "How many digits can you see?"),
}
"""Kinds of question about needles; ``{m}`` is "video" or "clip". The last two are asked nowhere else."""

SCENE_FRAMES = (24, 64)  # of one scene of a long clip, before the next cut
_NONE = 0.12  # chance of no needle, and of one, two and three where there are some:
_HOW_MANY = (15 / 22, 4 / 22, 3 / 22)
_SCENE_KINDS = ("list", "colours", "count", "presence")  # what is true whatever the times are
_TOKENS_PER_PIECE = 6  # of a transcript: two times, article, colour, shape, and the rest


def needle_picture(rng: np.random.Generator, digit: str, size: int) -> np.ndarray:
    """A digit on a background of its own, ``uint8 [size, size, 3]``."""
    frame = draw_background(random_background(rng), size).copy()
    x, y = (float(v) for v in rng.uniform(0.35, 0.65, size=2))
    draw(frame, digit, COLOURS["white"], x, y, float(rng.uniform(0.2, 0.3)), 0.0)
    return frame


def needle_frame(digit: str, size: int = 64, *, seed: int = 0) -> np.ndarray:
    """`needle_picture` of an evaluation: always the same one for a digit and a seed.

    Raises:
        ConfigError: ``digit`` is not one of 0 to 9.
    """
    if digit not in DIGITS:
        raise ConfigError(f"cannot draw {digit!r} as a needle; choose a digit 0-9")
    return needle_picture(rng_for(seed, int(digit)), digit, size)


@dataclass(frozen=True)
class _Hidden:
    """A needle: what it says, and when."""

    digit: str
    span: Span


@dataclass(frozen=True)
class Haystacks:
    """Conversations about clips with needles; item ``i`` depends only on the fields and ``i``.

    Attributes:
        split: "train" or "heldout".
        seed: Of all randomness.
        size: Number of conversations.
        frames: Fewest and most frames; short clips are as likely as long ones (log-uniform).
        image_size: Side of the frames, pixels.
        turns: Most questions about one clip.
        none: Share of the clips without a needle.
    """

    split: str
    seed: int
    size: int = 1_000_000
    frames: tuple[int, int] = (8, 64)
    image_size: int = 64
    turns: int = 8
    none: float = _NONE

    def __post_init__(self) -> None:
        _check(self.split, "frames", self.frames, least=2)
        if not 0 <= self.none <= 1:
            raise ConfigError(f"none={self.none} must be a share, from 0 to 1")

    def __len__(self) -> int:
        return self.size

    @cached_property
    def lengths(self) -> np.ndarray:
        """Frames of every conversation, for batches of similar length."""
        return np.array([self._start(i)[1] for i in range(self.size)])

    def __getitem__(self, index: int) -> Sample:
        rng, count = self._start(index)
        step = float(rng.uniform(0.5, 2.0))
        lengths = _cuts(rng, count)
        scenes = [self._scene(rng, n, step) for n in lengths]
        hay = np.concatenate(
            [s.frames(s.sample_times(n), self.image_size) for s, n in zip(scenes, lengths, strict=True)]
        )
        video, hidden = self._hide(rng, scenes[0].video(1, self.image_size), hay, step)
        turns = _turns(rng, hidden)
        if len(scenes) == 1:
            turns += Asker(scenes[0], rng, split=self.split, still=False).turns(2, _SCENE_KINDS)
        turns = _shuffled(rng, turns, self.turns)
        meta = {
            "turns": turns,
            "duration": video.duration,
            "frames": len(video.frames),
            "digits": [h.digit for h in hidden],
        }
        messages = conversation([{"type": "video", "video": video}], [(t.question, t.answer) for t in turns])
        return Sample(f"haystack-{self.split}-{self.seed}-{index}", messages, meta)

    def _scene(self, rng: np.random.Generator, frames: int, step: float) -> Scene:
        world = Level(shapes=(1, 3), seconds=(frames * step,) * 2, frames=(frames, frames), digit=0.0)
        return random_scene(rng, world, split=self.split, size=self.image_size, num_frames=frames)

    def _start(self, index: int) -> tuple[np.random.Generator, int]:
        if not 0 <= index < self.size:
            raise IndexError(f"item {index} of {self.size} conversations")
        rng = _rng(self.seed, self.split, "haystack", index)
        return rng, _log_uniform(rng, self.frames)

    def _hide(self, rng: np.random.Generator, like: Video, hay: np.ndarray, step: float) -> tuple[Video, list[_Hidden]]:
        """A video of frames ``hay`` and some more that show digits, at the ends as often as anywhere else; all last ``step`` seconds."""
        digits = _digits(rng, self.none)
        total = len(hay) + len(digits)
        places = np.sort(_places(rng, len(digits), total))
        frames = np.empty((total, *hay.shape[1:]), np.uint8)
        shown = np.ones(total, bool)
        shown[places] = False
        frames[shown] = hay
        for place, digit in zip(places, digits, strict=True):
            frames[place] = needle_picture(rng, digit, self.image_size)
        hidden = [_Hidden(d, Span(p * step, (p + 1) * step)) for d, p in zip(digits, places, strict=True)]
        end = total * step
        times = (np.arange(total) + 0.5) * step
        return replace(like, frames=frames, timestamps=times, duration=end, end=end), hidden


@dataclass(frozen=True)
class Transcripts:
    """Conversations about long transcripts: no picture, no sound.

    Attributes:
        split: "train" or "heldout".
        seed: Of all randomness.
        size: Number of conversations.
        tokens: Shortest and longest transcript, in tokens (roughly); log-uniform.
        turns: Most questions about one transcript.
    """

    split: str
    seed: int
    size: int = 1_000_000
    tokens: tuple[int, int] = (256, 2048)
    turns: int = 8

    def __post_init__(self) -> None:
        _check(self.split, "tokens", self.tokens, least=64)

    def __len__(self) -> int:
        return self.size

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of every conversation, roughly, for batches of similar length."""
        return np.array([self._start(i)[1] for i in range(self.size)])

    def __getitem__(self, index: int) -> Sample:
        rng, tokens = self._start(index)
        digits = _digits(rng, _NONE)
        count = max(tokens // _TOKENS_PER_PIECE, len(digits) + 2)
        step = float(rng.uniform(0.5, 2.0))
        places = np.sort(_places(rng, len(digits), count))
        allowed = pairs(self.split)
        names = [article(f"{c} {s}") for s, c in (allowed[i] for i in rng.integers(len(allowed), size=count))]
        for place, digit in zip(places, digits, strict=True):
            names[place] = f"the digit {digit}"
        pieces = [(i * step, (i + 1) * step, f" {name}") for i, name in enumerate(names)]
        hidden = [_Hidden(d, Span(p * step, (p + 1) * step)) for d, p in zip(digits, places, strict=True)]
        turns = _shuffled(rng, _turns(rng, hidden), self.turns)
        part = {"type": "transcript", "pieces": pieces, "duration": count * step}
        messages = conversation([part], [(t.question, t.answer) for t in turns])
        return Sample(f"transcript-{self.split}-{self.seed}-{index}", messages, {"turns": turns, "digits": digits})

    def _start(self, index: int) -> tuple[np.random.Generator, int]:
        if not 0 <= index < self.size:
            raise IndexError(f"item {index} of {self.size} conversations")
        rng = _rng(self.seed, self.split, "transcript", index)
        return rng, _log_uniform(rng, self.tokens)


def haystacks(split: str, *, seed: int, frames: list[int], **options: Any) -> Haystacks:
    """`Haystacks`, as recipes write them."""
    return Haystacks(split, seed, frames=_pair(frames, "frames"), **options)


def transcripts(split: str, *, seed: int, tokens: list[int], **options: Any) -> Transcripts:
    """`Transcripts`, as recipes write them."""
    return Transcripts(split, seed, tokens=_pair(tokens, "tokens"), **options)


def _turns(rng: np.random.Generator, hidden: list[_Hidden]) -> list[Turn]:
    """Every question about the needles that makes sense."""
    digits = tuple(h.digit for h in hidden)
    turns = [
        _turn(rng, "digit_presence", "yes" if digits else "no", choices=2),
        _turn(rng, "digits", ", ".join(digits) or NUMBERS[0], items=digits),
        _turn(rng, "digit_count", NUMBERS[len(digits)], choices=len(_HOW_MANY) + 1),
    ]
    if len(hidden) <= 1:
        turns += [_turn(rng, "digit", digits[0] if digits else NUMBERS[0], items=digits, choices=10) for _ in range(2)]
    if len(hidden) == 1:
        turns.append(_turn(rng, "digit_when", span_words(hidden[0].span), spans=(hidden[0].span,)))
    return turns


def _turn(rng: np.random.Generator, kind: str, answer: str, **details: Any) -> Turn:
    question = QUESTIONS[kind][int(rng.integers(len(QUESTIONS[kind])))].format(
        m=("video", "clip")[int(rng.integers(2))]
    )
    return Turn(kind, question, answer, **details)


def _digits(rng: np.random.Generator, none: float) -> list[str]:
    count = int(rng.choice(len(_HOW_MANY) + 1, p=(none, *(p * (1 - none) for p in _HOW_MANY))))
    return [str(d) for d in rng.choice(len(DIGITS), size=count, replace=False)]


def _places(rng: np.random.Generator, count: int, total: int) -> np.ndarray:
    """``count`` different places among ``total``; one time out of eight the first needle is the very first or last frame."""
    places = rng.choice(total, size=count, replace=False)
    if count and rng.random() < 0.125:
        end = int(rng.integers(2)) * (total - 1)
        if end not in places:
            places[0] = end
    return places


def _cuts(rng: np.random.Generator, count: int) -> list[int]:
    """Frames of each scene of a clip: one scene in a short clip; a long one is cut, or hardly anything in it would move."""
    lengths: list[int] = []
    while count > SCENE_FRAMES[1]:
        lengths.append(int(rng.integers(SCENE_FRAMES[0], SCENE_FRAMES[1] + 1)))
        count -= lengths[-1]
    return [*lengths, count] if count > 1 or not lengths else [*lengths[:-1], lengths[-1] + count]


def _shuffled(rng: np.random.Generator, turns: list[Turn], most: int) -> list[Turn]:
    return [turns[i] for i in rng.permutation(len(turns))[:most]]


def _log_uniform(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    return round(float(np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1])))))


def _rng(seed: int, split: str, what: str, index: int) -> np.random.Generator:
    return rng_for(seed, zlib.crc32(f"{what} {split}".encode()), index)


def _pair(bounds: list[int], name: str) -> tuple[int, int]:
    if len(bounds) != 2:
        raise ConfigError(f"{name}={bounds} must be two numbers, the fewest and the most")
    return bounds[0], bounds[1]


def _check(split: str, name: str, bounds: tuple[int, int], *, least: int) -> None:
    pairs(split)  # knows the splits
    if not least <= bounds[0] <= bounds[1]:
        raise ConfigError(f"{name}={list(bounds)} must be two numbers from {least} up, the smaller one first")
