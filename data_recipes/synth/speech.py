"""Speech: read sentences with transcripts for evaluation, recorded captions, and invented sentences for training on transcripts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from data_recipes.sources import debian_package
from data_recipes.synth.pictures import stamps

_LINE = re.compile(r"<s>\s*(.*?)\s*</s>\s*\((.+)\)")
_OPENINGS = (
    "Look, there is",
    "Here we can see",
    "This is",
    "I like",
    "Next comes",
    "Do you see",
    "Now we look at",
    "I found",
)
_FILLERS = (
    "It is time to go home.",
    "Please listen to me.",
    "We will start in a minute.",
    "Thank you for watching.",
    "The weather is very nice today.",
    "He did not know what to say.",
    "Can you hear this?",
    "Let us count to three.",
)


@dataclass(frozen=True)
class Utterance:
    """One recording with what is said in it."""

    path: Path
    text: str


@cache
def read_sentences() -> tuple[Utterance, ...]:
    """Five sentences of a novel, read aloud: 16 kHz WAV with lower-case transcripts (Debian's pocketsphinx-testdata).

    Raises:
        DataError: The package cannot be had here.
    """
    folder = debian_package("pocketsphinx-testdata") / "usr/share/pocketsphinx/test/data/librivox"
    matches = (_LINE.match(line) for line in (folder / "transcription").read_text().splitlines())
    return tuple(Utterance(folder / f"{m[2]}.wav", m[1]) for m in matches if m)


@cache
def spoken_captions() -> tuple[Utterance, ...]:
    """Recorded English captions of stamps (44.1 kHz Vorbis, a few seconds each)."""
    return tuple(Utterance(p.spoken, p.caption) for p in stamps() if p.spoken is not None)


@cache
def clip_seconds(path: Path) -> float:
    """Length of a sound file in seconds."""
    from vlm.media import load_audio

    return load_audio(path, rate=16_000).duration


def invented_sentence(rng: np.random.Generator) -> str:
    """One or two sentences as Whisper would write them down, for training on transcripts without sound."""
    pictures = stamps()
    picture = pictures[int(rng.integers(len(pictures)))]
    opening = _OPENINGS[int(rng.integers(len(_OPENINGS)))]
    end = "?" if opening.startswith("Do you") else "."
    filler = _FILLERS[int(rng.integers(len(_FILLERS)))]
    named = f"{opening} {picture.name.phrase}{end}"
    return (named, picture.caption, filler, f"{named} {filler}")[int(rng.integers(4))]
