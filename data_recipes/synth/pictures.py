"""The catalogue of captioned pictures: Tux Paint's stamps, read from their Debian package, with names, colours and splits.

A stamp is a cut-out picture with a caption ("A moon wrasse."), from which a name is taken ("a moon wrasse"). Adjectives
that do not belong to the name (colours, sizes, moods) are dropped, so that pictures of one kind form one class; captions
that are whole sentences have their names in ``stamp_names.txt``.

Splits are fixed for ever by names and hashes, never by chance:

- ``train``;
- ``picture``: an unseen picture of a class that training does show with other pictures;
- ``class``: a picture of a class that training does not show at all.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np

from data_recipes.sources import debian_package

STAMPS = "tuxpaint-stamps-default"
SPLITS = ("train", "picture", "class")
_UNSEEN_CLASSES_PERCENT = 15
_LEFT_OUT = ("symbols",)

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")
_SOFT = {
    *COLOURS,
    *[
        "golden",
        "grey",
        "silver",
        "happy",
        "very",
        "small",
        "large",
        "huge",
        "little",
        "big",
        "old",
        "modern",
        "sitting",
        "sleeping",
        "ripe",
        "sweet",
        "colorful",
        "toy",
    ],
    *["dream", "ordinary", "lit", "singing", "spiny", "eared", "floppy-eared", "old-fashioned"],
}
_ARTICLE = re.compile(r"^(an?|the|some|our|two)\s+", re.IGNORECASE)
_GROUPING = re.compile(r"^(pair|bunch|cluster|string|head|couple|quarter) of ", re.IGNORECASE)
_CLAUSE_END = re.compile(r"[.!?;:(—–…]| - |, | is | are | lets | covered | with | in its | at ")


@dataclass(frozen=True)
class Name:
    """How a thing is called.

    Attributes:
        noun: Lower-case class name without article: ``moon wrasse``.
        article: ``a``, ``an``, ``the`` or nothing (plural things, substances, proper names).
    """

    noun: str
    article: str

    @property
    def phrase(self) -> str:
        """With its article: ``a moon wrasse``."""
        return f"{self.article} {self.noun}".strip()

    @property
    def countable(self) -> bool:
        """Whether "two ..." makes sense."""
        return self.article in ("a", "an")

    @property
    def plural(self) -> str:
        """Plural of the noun by the common rules."""
        return pluralise(self.noun)


@dataclass(frozen=True)
class Picture:
    """One cut-out picture.

    Attributes:
        id: Path below the stamps folder without ending, for example ``animals/fish/moonwrasse``.
        path: The PNG (RGBA).
        caption: English caption as the package has it.
        name: What it shows.
        group: ``animals``, ``food``, ...
        split: One of `SPLITS`.
        drawn: A drawing rather than a photograph.
        sound: A sound that belongs to it (not speech), if any.
        spoken: A spoken English caption, if any.
    """

    id: str
    path: Path
    caption: str
    name: Name
    group: str
    split: str
    drawn: bool
    sound: Path | None = None
    spoken: Path | None = None


_IRREGULAR = {"mouse": "mice", "ox": "oxen", "goose": "geese", "tooth": "teeth", "leaf": "leaves", "scarf": "scarves"}
_UNCHANGED = ("fish", "sheep", "deer", "bison", "shrimp", "trout", "fowl")
_ADDS_ES = re.compile(r"(s|x|z|ch|sh|tomato|potato|mango)$")


def pluralise(noun: str) -> str:
    """Plural of a noun phrase: "glass of water" becomes "glasses of water", "firefly" becomes "fireflies"."""
    if match := re.match(r"(.+?)( (?:of|in) .+)", noun):
        return pluralise(match[1]) + match[2]
    start, space, last = noun.rpartition(" ")
    if last in _IRREGULAR:
        return f"{start}{space}{_IRREGULAR[last]}"
    if last.endswith(_UNCHANGED):
        return noun
    if _ADDS_ES.search(last):
        return noun + "es"
    if re.search(r"[^aeiou]y$", last):
        return noun[:-1] + "ies"
    return noun[:-3] + "men" if last.endswith("man") else noun + "s"


def name_from_caption(caption: str) -> Name:
    """The name in a caption that starts with it: ``A moon wrasse.`` -> a moon wrasse; ``A red apple.`` -> an apple."""
    clause = _CLAUSE_END.split(re.sub(r"[“”\"]", "", caption).strip(" –-—"))[0].strip()
    match = _ARTICLE.match(clause)
    article = match[1].lower() if match else ""
    words = clause[match.end() if match else 0 :]
    if grouping := _GROUPING.match(words):
        words, article = words[grouping.end() :], ""
    parts = words.split()
    while len(parts) > 1 and parts[0].lower().strip(",") in _SOFT:
        parts = parts[1:]
    noun = " ".join(parts)
    noun = noun if noun[:1].islower() or _keeps_capital(noun) else noun[:1].lower() + noun[1:]
    if article in ("a", "an"):
        article = "an" if noun[:1].lower() in "aeio" or noun.startswith("umbrella") else "a"
    return Name(noun, article if article in ("a", "an", "the") else "")


def _keeps_capital(noun: str) -> bool:
    return noun.split()[0] in {
        "Santa",
        "Christmas",
        "Easter",
        "Earth",
        "Jupiter",
        "Saturn",
        "Fuji",
        "T-shirt",
        "Eiffel",
        "F-22",
    }


@cache
def stamps() -> tuple[Picture, ...]:
    """All stamps that can be named, ordered by id.

    Raises:
        DataError: The Debian package cannot be had here.
    """
    root = debian_package(STAMPS) / "usr/share/tuxpaint/stamps"
    names = _name_table()
    found: dict[str, Picture] = {}
    for path in sorted(root.rglob("*.png")):
        key = str(path.relative_to(root).with_suffix(""))
        if key.split("/")[0] in _LEFT_OUT or re.search(r"mirror|flip", path.stem) or names.get(key) == "-":
            continue
        picture = _read_stamp(path, key, names.get(key))
        if picture is not None:
            found.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), picture)
    return _with_splits(sorted(found.values(), key=lambda p: p.id))


def _name_table() -> dict[str, str]:
    lines = (resources.files("data_recipes") / "synth/stamp_names.txt").read_text("utf-8").splitlines()
    rows = (line.split(" = ") for line in lines if line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, value in rows}


def _read_stamp(path: Path, key: str, given: str | None) -> Picture | None:
    text = path.with_suffix(".txt")
    lines = text.read_text("utf-8", errors="replace").splitlines() if text.exists() else []
    caption = lines[0].strip() if lines else ""
    if not caption and given is None:
        return None
    sound = next((p for p in (path.with_suffix(".ogg"), path.with_suffix(".wav")) if p.exists()), None)
    spoken = path.with_name(f"{path.stem}_desc.ogg")
    return Picture(
        id=key,
        path=path,
        caption=caption,
        name=_given_name(given) if given else name_from_caption(caption),
        group=key.split("/")[0],
        split="train",
        drawn="cartoon" in key,
        sound=sound,
        spoken=spoken if spoken.exists() else None,
    )


def _given_name(text: str) -> Name:
    match = re.match(r"^(an?|the)\s+(.+)$", text)
    return Name(match[2], match[1]) if match else Name(text, "")


def _rank(text: str) -> int:
    """A fixed pseudo-random number in 0..99 for a name."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 100


def _with_splits(pictures: list[Picture]) -> tuple[Picture, ...]:
    classes: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        classes[picture.name.noun].append(picture)
    splits: dict[str, str] = {}
    for noun, members in classes.items():
        if len(members) == 1:
            splits[members[0].id] = "class" if _rank(noun) < _UNSEEN_CLASSES_PERCENT else "train"
            continue
        ordered = sorted(members, key=lambda p: _rank(p.id))
        unseen = 1 + (len(members) >= 5)
        splits |= {p.id: "picture" if i < unseen else "train" for i, p in enumerate(ordered)}
    return tuple(replace(p, split=splits[p.id]) for p in pictures)


@cache
def by_id() -> dict[str, Picture]:
    """The stamps by their id."""
    return {p.id: p for p in stamps()}


@cache
def colour_of(picture_id: str) -> str | None:
    """The colour most of a picture has, as a word of `COLOURS`, or None when no colour is clear."""
    return dominant_colour(load_rgba(by_id()[picture_id].path, longest=128))


def load_rgba(path: Path, *, longest: int) -> np.ndarray:
    """Picture as uint8 ``[H, W, 4]``, made smaller so that its longer side is at most ``longest`` pixels."""
    from PIL import Image

    with Image.open(path) as file:
        image = file.convert("RGBA")
        box = image.getchannel("A").getbbox()
        image = image.crop(box) if box else image
        image.thumbnail((longest, longest), Image.Resampling.BICUBIC, reducing_gap=3.0)
        return np.asarray(image)


def dominant_colour(rgba: np.ndarray, *, least: float = 0.55, lead: float = 2.5) -> str | None:
    """Named colour of the opaque pixels of uint8 ``[H, W, 4]``: at least ``least`` of them, ``lead`` times the runner-up."""
    pixels = rgba[rgba[..., 3] > 200][:, :3]
    if len(pixels) < 20:
        return None
    shares = np.bincount(_colour_indices(pixels), minlength=len(COLOURS)) / len(pixels)
    order = np.argsort(shares)[::-1]
    first, second = shares[order[0]], shares[order[1]]
    return COLOURS[int(order[0])] if first >= least and first >= lead * second else None


def _colour_indices(rgb: np.ndarray) -> np.ndarray:
    """Index into `COLOURS` of each pixel of uint8 ``[N, 3]``, by hue, saturation and brightness."""
    x = rgb.astype(np.float32) / 255
    value, low = x.max(1), x.min(1)
    chroma = value - low
    saturation = chroma / np.maximum(value, 1e-6)
    safe = np.maximum(chroma, 1e-6)
    r, g, b = x.T
    hue = np.where(value == r, ((g - b) / safe) % 6, np.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4)) * 60
    edges = np.array([14, 42, 70, 165, 255, 300, 335])
    names = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "red")
    out = np.array([COLOURS.index(n) for n in names])[np.digitize(hue, edges)]
    warm = (out == COLOURS.index("orange")) | (out == COLOURS.index("red"))
    out[warm & (value < 0.62) & (hue < 50)] = COLOURS.index("brown")
    out[warm & (value >= 0.62) & (value < 0.85) & (saturation < 0.6) & (out == COLOURS.index("orange"))] = (
        COLOURS.index("brown")
    )
    out[(out == COLOURS.index("red")) & (saturation < 0.5) & (value > 0.75)] = COLOURS.index("pink")
    plain = saturation < 0.18
    out[plain & (value > 0.85)] = COLOURS.index("white")
    out[plain & (value <= 0.85)] = COLOURS.index("gray")
    out[value < 0.2] = COLOURS.index("black")
    return out
