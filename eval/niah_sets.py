"""Needles that come with the package, and anybody's from a folder: digits, shapes, photographs, beeps, read sentences."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.sample import rng_for
from data_recipes.synth.shapes import COLOURS, DIGITS, SHAPES, needle_frame
from data_recipes.synth.shapes_phrasings import PHRASINGS
from data_recipes.synth.shapes_questions import article
from data_recipes.synth.shapes_render import draw, draw_background, random_background
from data_recipes.synth.shapes_scene import tone
from data_recipes.synth.shapes_world import pairs
from eval.needles import LETTERS, Needle, NeedleSet
from vlm.errors import ConfigError, DataError, VLMError
from vlm.media import load_image

SET_FILE, DATASET_FILE = "needles.json", "metadata.jsonl"
PHOTOGRAPHS = 14
"""Needles among the photographs; the others are their look-alikes."""
_PLAIN = {
    "Granny Smith": "apple",
    "baboon": "monkey",
    "fox squirrel": "squirrel",
    "monarch": "butterfly",
    "lakeside": "lake",
    "tabby": "cat",
}
"""What a person would call a class of ImageNet that is told from no other needle by it (ours)."""

_OPTION = re.compile(r"^\s*\(?([A-J])[.):]\s*(.+?)\s*$", re.MULTILINE)
_QUESTIONS = ("several", "order", "count")


@dataclass(frozen=True)
class SoundNeedle:
    """A sound to hide in silence.

    Attributes:
        samples: Mono float32 ``[S]``.
        rate: Samples per second.
        text: What is said; "" for a beep.
    """

    samples: np.ndarray
    rate: int
    text: str = ""

    @property
    def seconds(self) -> float:
        """Length."""
        return len(self.samples) / self.rate


def digits(size: int, seed: int = 0) -> NeedleSet:
    """Ten pictures of digits. A look-alike shows a white shape in the digit's place.

    `nano` learnt the questions ``digit``, ``digit_when`` and ``digit_presence``; it learnt none about several digits.
    """
    question, presence, when = (PHRASINGS[kind][0][0] for kind in ("digit", "digit_presence", "digit_when"))
    needles = tuple(
        Needle(
            needle_frame(digit, size, seed=seed),
            question,
            digit,
            presence=presence,
            when=when,
            lookalike=_picture(SHAPES[i % len(SHAPES)], "white", size, rng_for(seed, 100 + i), (0.2, 0.3)),
        )
        for i, digit in enumerate(DIGITS)
    )
    return NeedleSet(
        "digits",
        needles,
        "Which digits are shown?",
        "In which order do the digits appear?",
        "How many digits are there?",
    )


def shapes(size: int, seed: int = 0, count: int = 10) -> NeedleSet:
    """Pictures of one coloured shape each, to hide where there is no other shape. A look-alike has another colour.

    `nano` learnt the questions ``list``, ``order``, ``count``, ``when`` and ``presence``.
    """
    rng, names = rng_for(seed, 200), pairs("train")
    chosen = [names[i] for i in rng.permutation(len(names))[:count]]
    taken = set(chosen)
    needles = []
    for shape, colour in chosen:
        noun = f"{colour} {shape}"
        other = [c for c in COLOURS if (shape, c) not in taken]
        twin = _picture(shape, other[int(rng.integers(len(other)))], size, rng, (0.15, 0.2))
        image = _picture(shape, colour, size, rng, (0.15, 0.2))
        presence = PHRASINGS["presence"][0][0].format(a=article(noun))
        question, when = PHRASINGS["list"][0][0], PHRASINGS["when"][0][0].format(the=f"the {noun}")
        needle = Needle(image, question, article(noun), also=(noun,), presence=presence, when=when, lookalike=twin)
        needles.append(needle)
    order, number = PHRASINGS["order"][0][0], PHRASINGS["count"][0][0]
    return NeedleSet("shapes", tuple(needles), needles[0].question, order, number, number="{items}: {number}")


def _picture(what: str, colour: str, size: int, rng: np.random.Generator, radius: tuple[float, float]) -> np.ndarray:
    """One thing near the middle of a dark texture, as in `needle_frame`."""
    frame = draw_background(random_background(rng), size).copy()
    x, y = (float(v) for v in rng.uniform(0.35, 0.65, size=2))
    draw(frame, what, COLOURS[colour], x, y, float(rng.uniform(*radius)), 0.0)
    return frame


def photographs(size: int) -> NeedleSet:
    """Photographs that no training has shown, each with a clear ImageNet class; other photographs are their look-alikes.

    `smol` learnt the questions ``list``, ``when``, ``presence`` and ``order`` (which of two comes first); it learnt none that counts over
    time. As a list also names what is in the haystack, teacher forcing, which wants the needle's name first, says little here.

    Raises:
        DataError: Fewer than four photographs can be had here.
    """
    from data_recipes.synth.imagenet import imagenet_classes
    from data_recipes.synth.photographs import photographs as found

    chosen: list[Any] = []
    for picture in found():  # the reference classifier knows them, and no two have a name in common
        named = {n for other in chosen for n in other.true_names}
        if picture.teacher_is_right and not named & set(picture.true_names) and len(chosen) < PHOTOGRAPHS:
            chosen.append(picture)
    taken = {n for picture in chosen for n in picture.true_names}
    rest = [p for p in found() if not taken & set(p.true_names)]
    if len(chosen) < 4 or not rest:
        raise DataError("too few photographs for needles; install Debian's opencv-doc, or give needles=FOLDER")
    needles = []
    for i, picture in enumerate(chosen):
        first, *others = picture.true_names
        phrase = imagenet_classes()[picture.class_ids[0]].name.phrase
        image, twin = (_square(p.pixels, size) for p in (picture, rest[i % len(rest)]))
        names = (first, *others, *([_PLAIN[first]] if first in _PLAIN else []))
        presence, when = f"Is there {phrase}?", f"When does {definite(phrase)} appear?"
        question = "What is in the video?"
        needles.append(Needle(image, question, phrase, also=names, presence=presence, when=when, lookalike=twin))
    order, count = "Which comes first, {first} or {second}?", "How many times is there {what}?"
    numbers = ("no", "one", "two", "three")
    return NeedleSet(
        "photographs", tuple(needles), "What is in the video?", order, count, numbers=numbers, sentence=True
    )


def definite(phrase: str) -> str:
    """ "a dog" as "the dog"."""
    return re.sub(r"^(an?|the) ", "the ", phrase)


def _square(pixels: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


def beeps(rate: int, seed: int = 0, count: int = 10) -> list[SoundNeedle]:
    """Single tones as in the shapes world: 0.3 to 1.5 s long, 400 to 1600 Hz. `nano` learnt ``beep_when`` and ``beep_count``."""
    needles = []
    for i in range(count):
        rng = rng_for(seed, 300 + i)
        count = round(float(rng.uniform(0.3, 1.5)) * rate)
        needles.append(SoundNeedle(tone(count, float(rng.uniform(400.0, 1600.0)), rate), rate))
    return needles


def sentences(rate: int) -> list[SoundNeedle]:
    """Read sentences that no training has heard. `smol` learnt the question ``said``.

    Raises:
        DataError: They cannot be had here.
    """
    from data_recipes.synth.speech import read_sentences
    from vlm.media import load_audio

    return [SoundNeedle(load_audio(u.path, rate=rate).mono(), rate, u.text) for u in read_sentences()]


def needles_of(folder: Path) -> NeedleSet:
    """Needles from a folder with `SET_FILE` (see docs/needle.md), or with `DATASET_FILE`: a line for each picture with
    ``file_name``, ``question``, ``answer``, which is how image datasets of the hub are laid out, V-NIAH's among them (unverified).

    Raises:
        ConfigError: There is no such folder.
        DataError: A file is missing or malformed; names the file, the needle and the field.
    """
    if not folder.is_dir():
        raise ConfigError(f"needles={folder.name!r} is not a folder; give one with {SET_FILE} or {DATASET_FILE}")
    own, lines = folder / SET_FILE, folder / DATASET_FILE
    if own.is_file():
        return _own_set(folder, _json(own.read_text(encoding="utf-8"), SET_FILE))
    if lines.is_file():
        rows = [_json(line, DATASET_FILE) for line in lines.read_text(encoding="utf-8").splitlines() if line.strip()]
        renamed = [{**r, "image": r.get("file_name")} if isinstance(r, dict) else r for r in rows]
        return _own_set(folder, {"needles": renamed}, DATASET_FILE)
    raise DataError(f"the folder {folder.name!r} has neither {SET_FILE} nor {DATASET_FILE}")


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{name} is not JSON: {error}") from error


def _own_set(folder: Path, content: Any, name: str = SET_FILE) -> NeedleSet:
    entries = content.get("needles") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{name} must be an object with a list 'needles' of at least one needle")
    questions = content.get("questions", {})
    if not isinstance(questions, dict) or set(questions) - set(_QUESTIONS):
        raise DataError(f"'questions' of {name} must be an object with some of {', '.join(_QUESTIONS)}")
    needles = tuple(_own_needle(folder, entry, f"needle {i} of {name}") for i, entry in enumerate(entries, 1))
    several, order, count = (str(questions.get(key, "")) for key in _QUESTIONS)
    return NeedleSet(folder.name, needles, several, order, count)


def _own_needle(folder: Path, entry: Any, where: str) -> Needle:
    if not isinstance(entry, dict):
        raise DataError(f"{where} must be an object, not {entry!r}")
    for key in ("image", "question", "answer"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise DataError(f"{where} must have {key!r}, a text that is not empty")
    question, answer, options = entry["question"].strip(), entry["answer"].strip(), entry.get("options")
    if options is None:
        question, answer, options = _with_letters(question, answer)
    twin = entry.get("lookalike")
    try:
        return Needle(
            _load(folder, entry["image"], where),
            question,
            answer,
            options=None if options is None else _texts(options, where, "options"),
            also=_texts(entry.get("also", []), where, "also"),
            presence=str(entry.get("presence", "")),
            when=str(entry.get("when", "")),
            lookalike=None if twin is None else _load(folder, str(twin), where),
        )
    except ConfigError as error:
        raise DataError(f"{where}: {error}") from error


def _with_letters(question: str, answer: str) -> tuple[str, str, list[str] | None]:
    """A question with options "A. ..." in its lines and a letter as its answer, taken apart so that the options can be rotated."""
    found = _OPTION.findall(question)
    letters = [letter for letter, _ in found]
    if len(found) < 2 or letters != list(LETTERS[: len(found)]) or answer.rstrip(".") not in letters:
        return question, answer, None
    options = [text for _, text in found]
    return question[: _OPTION.search(question).start()].strip(), options[letters.index(answer.rstrip("."))], options  # type: ignore[union-attr]


def _texts(value: Any, where: str, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) and v.strip() for v in value):
        raise DataError(f"{where}: {key!r} must be a list of texts, not {value!r}")
    return tuple(value)


def _load(folder: Path, name: str, where: str) -> np.ndarray:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{where}: {name!r} is outside the folder")
    try:
        return load_image(path)
    except (VLMError, OSError) as error:
        raise DataError(f"{where}: the picture {name!r} cannot be read ({error})") from error


def by_name(name: str, *, size: int, seed: int) -> NeedleSet:
    """The set called ``digits``, ``shapes`` or ``photographs``, or the one in the folder ``name``."""
    if name == "digits":
        return digits(size, seed)
    if name == "shapes":
        return shapes(size, seed)
    return photographs(size) if name == "photographs" else needles_of(Path(name))


def names_of(needles: Sequence[Needle]) -> list[str]:
    """Every name of every needle."""
    return [name for needle in needles for name in needle.names]
