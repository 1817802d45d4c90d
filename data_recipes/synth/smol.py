"""Endless short conversations about clips of pictures, for training and scoring the default model.

Training runs in feature space: a shot is a row of the `FeatureBank`, or a map made from an ImageNet prototype, so no picture is
drawn and no vision tower runs. Held-out conversations can be had as features too, or as frames and real H.264 files of unseen
pictures that go through the whole model. Every sample is a pure function of ``(seed, index)``.

Examples:
    >>> data = conversations("train", seed=0, size=1000)
    >>> data[0].messages[0]["content"][0]["features"].shape[1:]
    (49, 1280)
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.sample import REASON, Sample, check_kinds, conversation, reason_kinds, rng_for
from data_recipes.synth.clips import Clip, Shot, Sound
from data_recipes.synth.features import ASPECTS, PLAN_SIZES, FeatureBank, feature_bank
from data_recipes.synth.imagenet import PrototypeMaps
from data_recipes.synth.pictures import stamps
from data_recipes.synth.smol_names import related, unrelated_names
from data_recipes.synth.smol_questions import PHRASINGS, Asker, Turn
from data_recipes.synth.smol_reasoning import PHRASINGS as REASONS
from data_recipes.synth.smol_reasoning import reasons
from data_recipes.synth.smol_sources import (
    Source,
    bank_source,
    class_source,
    drawn_source,
    trained_maps,
    vague_source,
    varied_source,
)
from data_recipes.synth.speech import any_sentence, clip_seconds
from data_recipes.synth.variations import Variations
from vlm.errors import ConfigError
from vlm.time import frame_edges
from vlm.time.shots import split_long

MEDIA = ("features", "frames", "file")
_FPS = 10.0  # of written clips; all cuts fall on frames
_SEEDS = {"train": 0, "picture": 1, "class": 2}


@dataclass(frozen=True)
class SmolDataset:
    """A finite set of conversations; item ``i`` depends only on the fields and ``i``.

    Attributes:
        split: ``train``, ``picture`` (unseen pictures of seen classes) or ``class`` (unseen classes); see `pictures`.
        size: Number of conversations.
        seed: Of all randomness.
        medium: ``features``, ``frames`` (a `vlm.media.Video` drawn at the sampled moments) or ``file`` (path of an mp4).
        seconds: Shortest and longest clip.
        shots: Least and most shots.
        turns: Least and most questions.
        kinds: Only these kinds of question: keys of `smol_questions.PHRASINGS`, or ``reason_`` and one of `smol_reasoning.PHRASINGS`; all of
            the former by default. A clip that gives nothing to reason about is asked about with kind ``when``.
        classes: Share of shots that show an ImageNet class (features only).
        speech: Share of clips in which something is said.
        varied: Share of shots of one or two pictures (features only) that show a made-up variation; see `Variations`.
        presence_first: Share of conversations that ask what is there before other questions tell it.
        moments: Share of clips of three shots or more in which one lasts a sampled frame or two.
        last: Share of those in which it is the last one.
        again: Share of shots (features only) that show what the one before shows, as the pieces of a long take do.
        footage: Share of clips (features only) in which one to three shots, the shortest among them, show what can be named and the others
            nothing in particular, as footage does.
        frames: Frames that the model samples; drawn from 16, 32, 64 by default.
        folder: Where ``file`` writes; a temporary folder by default.
        bank: Features to use; those of the split by default, which are built on first use.
    """

    split: str
    size: int
    seed: int = 0
    medium: str = "features"
    seconds: tuple[float, float] = (5.0, 120.0)
    shots: tuple[int, int] = (1, 8)
    turns: tuple[int, int] = (4, 8)
    kinds: tuple[str, ...] | None = None
    classes: float = 0.4
    speech: float = 0.15
    varied: float = 0.0
    presence_first: float = 0.0
    moments: float = 0.0
    last: float = 0.0
    again: float = 0.0
    footage: float = 0.0
    frames: int | None = None
    folder: str | None = None
    bank: FeatureBank | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.split not in PLAN_SIZES:
            raise ConfigError(f"split={self.split!r} is not one of {tuple(PLAN_SIZES)}")
        if self.medium not in MEDIA:
            raise ConfigError(f"medium={self.medium!r} is not one of {MEDIA}")
        check_kinds(self.kinds, (*PHRASINGS, *(REASON + kind for kind in REASONS)))
        for name, least in (("seconds", 0.1), ("shots", 1), ("turns", 1)):
            low, high = getattr(self, name)
            if not least <= low <= high < float("inf"):
                raise ConfigError(f"{name}={(low, high)} must go up and begin at {least} or above")

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.size:
            raise IndexError(f"conversation {index} of {self.size}")
        rng = rng_for(self.seed, _SEEDS[self.split], index)
        clip, sources, frames = self._clip(rng)
        times = (np.arange(frames) + 0.5) * clip.duration / frames
        segments = _frames_per_shot(clip, times)
        edges = _visible_edges(segments, times, clip.duration)
        heldout = self.split != "train"
        shown = [i.name for s in clip.shots for i in s.items]
        classes = self.classes if self.medium == "features" else 0.0
        names = unrelated_names(shown, rng, split=self.split, classes=classes)
        asker = Asker(clip, names, edges if self.medium == "features" else None, heldout)
        count = int(rng.integers(self.turns[0], self.turns[1] + 1))
        turns = self._turns(asker, rng, count)
        if self.presence_first and rng.random() < self.presence_first:
            turns.sort(key=lambda t: t.kind != "presence")
        media = self._media(clip, sources, segments, times, index, rng)
        meta = {
            "turns": turns,
            "duration": clip.duration,
            "clip": clip,
            "cuts": [s.start for s in clip.shots[1:]],
        }
        return Sample(
            f"smol-{self.split}-{self.seed}-{index}", conversation(media, [(t.question, t.answer) for t in turns]), meta
        )

    def clip(self, index: int) -> Clip:
        """The description of the clip of one conversation."""
        return self._clip(rng_for(self.seed, _SEEDS[self.split], index))[0]

    def _turns(self, asker: Asker, rng: np.random.Generator, count: int) -> list[Turn]:
        thought = reason_kinds(self.kinds)
        if not thought:
            return asker.turns(rng, count=count, kinds=self.kinds)
        turns = reasons(asker, rng, most=count, kinds=thought)
        plain = tuple(k for k in self.kinds or () if not k.startswith(REASON))
        if plain or not turns:
            turns += asker.turns(rng, count=max(1, count - len(turns)), kinds=plain or ("when",))
        return turns

    # -- the clip -------------------------------------------------------------------------------------------------------

    def _clip(self, rng: np.random.Generator) -> tuple[Clip, list[Source], int]:
        """A clip, for each shot where its features come from, and how many frames the model samples."""
        frames = self.frames or int(rng.choice([16, 32, 64]))
        count = min(int(rng.integers(self.shots[0], self.shots[1] + 1)), max(1, frames // 2))
        lengths = _lengths(rng, count, self.seconds, frames=frames, moments=self.moments, last=self.last)
        used: set[str] = set()
        sources = [self._source(rng, used) for _ in range(count)]
        if self.again and self.medium == "features":
            for i in np.flatnonzero(rng.random(count - 1) < self.again).tolist():
                sources[i + 1] = sources[i]
        if self.footage and self.medium == "features" and rng.random() < self.footage:
            shown = {
                int(np.argmin(lengths)),
                *rng.choice(count, min(count, int(rng.integers(3))), replace=False).tolist(),
            }
            sources = [source if i in shown else vague_source(self._maps) for i, source in enumerate(sources)]
        starts = np.concatenate([[0.0], np.cumsum(lengths)]).round(1)
        shots = [
            replace(source.shot, start=float(a), end=float(b))
            for source, a, b in zip(sources, starts, starts[1:], strict=False)
        ]
        if rng.random() < self.speech:
            which = int(rng.integers(count))
            shots[which] = self._with_speech(shots[which], rng)
        return Clip(tuple(shots), ASPECTS[int(rng.integers(len(ASPECTS)))]), sources, frames

    def _source(self, rng: np.random.Generator, used: set[str]) -> Source:
        """A shot (times still open) of things whose nouns are not in ``used``, which grows."""
        for _ in range(20):
            if self.medium == "features" and rng.random() < self.classes:
                source = class_source(self._maps, rng)
            elif self.medium == "features":
                source = bank_source(self._bank, rng)
                if rng.random() < self.varied:
                    source = varied_source(source, self._variations, rng)
            else:
                source = drawn_source(self.split, rng)
            if not any(related(a, b) for a in source.nouns for b in used):
                break
        used |= source.nouns
        return source

    def _with_speech(self, shot: Shot, rng: np.random.Generator) -> Shot:
        """Someone speaks during the shot: invented words for features, a recorded caption for frames and files."""
        if self.medium == "features":
            text = any_sentence(rng)
            seconds = min(0.35 * len(text.split()) + 0.3, shot.end - shot.start)
            start = shot.start + float(rng.random()) * (shot.end - shot.start - seconds)
            return replace(shot, sound=Sound(Path(), start, text, seconds))
        spoken = [p for p in stamps() if p.spoken is not None]
        picture = spoken[int(rng.integers(len(spoken)))]
        if picture.spoken is None or (seconds := clip_seconds(picture.spoken)) > shot.end - shot.start:
            return shot
        start = shot.start + float(rng.random()) * (shot.end - shot.start - seconds)
        return replace(shot, sound=Sound(picture.spoken, start, picture.caption, seconds))

    @cached_property
    def _bank(self) -> FeatureBank:
        return self.bank or feature_bank(self.split)

    @cached_property
    def _maps(self) -> PrototypeMaps:
        return PrototypeMaps(self.bank) if self.bank else trained_maps()

    @cached_property
    def _variations(self) -> Variations:
        return Variations(self._maps)

    # -- the media ------------------------------------------------------------------------------------------------------

    def _media(
        self,
        clip: Clip,
        sources: list[Source],
        segments: list[int],
        times: np.ndarray,
        index: int,
        rng: np.random.Generator,
    ) -> list[dict[str, Any]]:
        if self.medium == "features":
            parts = [_feature_part(clip, sources, segments, times, rng)]
            heard = [s.sound for s in clip.shots if s.sound is not None]
            if heard:
                pieces = [(s.start, s.start + s.seconds, s.text) for s in heard]
                parts.append({"type": "transcript", "pieces": pieces, "duration": clip.duration})
            return parts
        if self.medium == "frames":
            return [{"type": "video", "video": draw_video(clip, times)}]
        folder = Path(self.folder or tempfile.mkdtemp(prefix="vlm-smol-"))
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.split}-{self.seed}-{index}.mp4"
        return [{"type": "video", "video": str(path if path.exists() else clip.write(path, _FPS))}]


def conversations(
    split: str = "train",
    *,
    size: int,
    seed: int = 0,
    medium: str = "features",
    seconds: tuple[float, float] = (5.0, 120.0),
    shots: tuple[int, int] = (1, 8),
    turns: tuple[int, int] = (4, 8),
    kinds: tuple[str, ...] | None = None,
    classes: float = 0.4,
    speech: float = 0.15,
    varied: float = 0.0,
    presence_first: float = 0.0,
    moments: float = 0.0,
    last: float = 0.0,
    again: float = 0.0,
    footage: float = 0.0,
    frames: int | None = None,
) -> SmolDataset:
    """The dataset a recipe names; arguments as in `SmolDataset`."""
    kinds = tuple(kinds) if kinds else None
    ranges = (float(seconds[0]), float(seconds[1])), (int(shots[0]), int(shots[1])), (int(turns[0]), int(turns[1]))
    return SmolDataset(
        split,
        size,
        seed,
        medium,
        *ranges,
        kinds,
        classes,
        speech,
        varied,
        presence_first,
        moments,
        last,
        again,
        footage,
        frames,
    )


# -- times --------------------------------------------------------------------------------------------------------------


def _lengths(
    rng: np.random.Generator, count: int, seconds: tuple[float, float], *, frames: int, moments: float, last: float
) -> np.ndarray:
    """Lengths of the shots in seconds (tenths); each is long enough to hold one of ``frames`` even samples, and 0.8 s if it can.

    With the chance ``moments`` one of three shots or more is cut down to one sample or two; with the chance ``last`` it is the last one.
    """
    total = float(np.exp(rng.uniform(np.log(seconds[0]), np.log(seconds[1]))))
    total = max(total, min(seconds[1], 1.2 * count))
    least = min(max(0.8 / total, 1.4 / frames), 0.9 / count)
    shares = least + (1 - count * least) * rng.dirichlet(np.full(count, 2.5))
    if moments and count > 2 and rng.random() < moments:
        which = count - 1 if last and rng.random() < last else int(rng.integers(count))
        shares[which] = min(least, 1.4 / frames)
        shares /= shares.sum()
    return np.maximum((total * shares).round(1), 0.1)


def _frames_per_shot(clip: Clip, times: np.ndarray) -> list[int]:
    ends = np.array([s.end for s in clip.shots])
    ends[-1] = np.inf
    return np.bincount(np.searchsorted(ends, times, side="right"), minlength=len(ends)).tolist()


def _visible_edges(counts: list[int], times: np.ndarray, duration: float) -> list[tuple[float, float]]:
    """(start, end) of each shot as sampled frames show it: halfway between its frames and its neighbours'."""
    edges = frame_edges(times, duration)
    last = np.cumsum(counts)
    return [(float(edges[b - c]), float(edges[b])) for b, c in zip(last, counts, strict=True)]


def _feature_part(
    clip: Clip, sources: list[Source], counts: list[int], times: np.ndarray, rng: np.random.Generator
) -> dict[str, Any]:
    """The video part: per segment (as the processor would cut it) its first and last frame, which fix its edges."""
    owners = np.repeat(np.arange(len(counts)), counts)
    pieces = split_long([c for c in counts if c])
    kept, segments, first = [], [], 0
    for length in pieces:
        kept += sorted({first, first + length - 1})
        segments.append(min(length, 2))
        first += length
    drawn = {int(o): sources[int(o)].features(rng) for o in dict.fromkeys(owners[kept].tolist())}
    return {
        "type": "video",
        "features": np.stack([drawn[int(o)] for o in owners[kept]]),
        "timestamps": times[kept],
        "duration": clip.duration,
        "segments": segments,
    }


def draw_video(clip: Clip, times: np.ndarray, *, height: int = 224, audio_rate: int = 16_000) -> Any:
    """The clip drawn at ``times`` (seconds) as a loaded `vlm.media.Video`, its sound as Whisper hears it."""
    from vlm.media import Video, VideoInfo

    size = (height, 2 * round(height * clip.aspect / 2))
    frames = np.stack([clip.render(float(t), size) for t in times])
    info = VideoInfo("drawn", size[1], size[0], clip.duration, 0.0, None, len(times), "raw", 0, False, "drawn")
    return Video(frames, times, clip.duration, "drawn", clip.audio(audio_rate), info, "exact", 0.0, clip.duration)
