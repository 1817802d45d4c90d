"""The catalogue of stamps: names, plurals, colours, splits."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from data_recipes.synth.pictures import (
    COLOURS,
    SPLITS,
    Picture,
    by_id,
    colour_of,
    dominant_colour,
    load_rgba,
    name_from_caption,
    pluralise,
    stamps,
)
from vlm.errors import DataError


@pytest.fixture(scope="module")
def pictures() -> tuple[Picture, ...]:
    try:
        return stamps()
    except DataError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("caption", "phrase"),
    [
        ("A moon wrasse.", "a moon wrasse"),
        ("A red apple.", "an apple"),
        ("An hippopotamus.", "a hippopotamus"),
        ("A peacock (a male peafowl).", "a peacock"),
        ("A dumper. It carries its load in the front.", "a dumper"),
        ("A bunch of grapes.", "grapes"),
        ("The town hall.", "the town hall"),
        ("Santa Claus.", "Santa Claus"),
        ("A Christmas tree.", "a Christmas tree"),
        ("A floppy-eared bunny.", "a bunny"),
    ],
)
def test_names_are_read_from_captions(caption: str, phrase: str) -> None:
    assert name_from_caption(caption).phrase == phrase


@pytest.mark.parametrize(
    ("noun", "plural"),
    [
        ("frog", "frogs"),
        ("butterfly", "butterflies"),
        ("monkey", "monkeys"),
        ("fox", "foxes"),
        ("clownfish", "clownfish"),
        ("computer mouse", "computer mice"),
        ("fireman", "firemen"),
        ("glass of water", "glasses of water"),
        ("toolbox", "toolboxes"),
        ("gun", "guns"),
    ],
)
def test_plurals(noun: str, plural: str) -> None:
    assert pluralise(noun) == plural


def test_dominant_colour_of_flat_pictures() -> None:
    flat = {
        "red": (220, 20, 20),
        "orange": (250, 140, 20),
        "yellow": (250, 230, 20),
        "green": (30, 170, 40),
        "blue": (30, 60, 220),
        "purple": (130, 40, 190),
        "pink": (250, 130, 180),
        "brown": (110, 70, 30),
        "black": (10, 10, 12),
        "white": (250, 250, 250),
        "gray": (128, 128, 128),
    }
    assert set(flat) == set(COLOURS)
    for name, rgb in flat.items():
        rgba = np.zeros((20, 20, 4), np.uint8)
        rgba[5:15, 5:15] = (*rgb, 255)  # the rest is transparent and must not count
        assert dominant_colour(rgba) == name


def test_no_colour_where_two_share_the_picture() -> None:
    rgba = np.full((20, 20, 4), 255, np.uint8)
    rgba[:10, :, :3] = (220, 20, 20)
    rgba[10:, :, :3] = (30, 60, 220)
    assert dominant_colour(rgba) is None


def test_catalogue(pictures: tuple[Picture, ...]) -> None:
    assert len(pictures) > 500
    assert all(p.name.noun and not p.name.noun.startswith(("a ", "an ", "the ")) for p in pictures)
    assert not any(p.group == "symbols" for p in pictures)
    fish = by_id()["animals/fish/moonwrasse"]
    assert (fish.caption, fish.name.phrase, fish.group) == ("A moon wrasse.", "a moon wrasse", "animals")
    assert by_id()["animals/birds/duck"].sound is not None
    assert by_id()["animals/birds/duck"].spoken is not None


def test_colours_of_well_known_things(pictures: tuple[Picture, ...]) -> None:
    known = {"town/flags/greenflag": "green", "household/rubberduck": "yellow", "seasonal/halloween/blackcat": "black"}
    assert {key: colour_of(key) for key in known} == known
    assert colour_of("animals/birds/quetzal") is None


def test_splits_are_by_picture_and_by_class(pictures: tuple[Picture, ...]) -> None:
    nouns = defaultdict(set)
    for picture in pictures:
        nouns[picture.split].add(picture.name.noun)
    assert set(nouns) == set(SPLITS)
    assert nouns["picture"] <= nouns["train"]
    assert not nouns["class"] & nouns["train"]
    counts = {s: sum(p.split == s for p in pictures) for s in SPLITS}
    assert counts["train"] > 3 * (counts["picture"] + counts["class"]) and min(counts.values()) > 30
    # written down, because a picture that changes sides would spoil every score
    assert by_id()["animals/birds/vulture"].split == "class"
    assert by_id()["animals/mammals/cats/tiger_sumatran"].split == "picture"
    assert by_id()["animals/mammals/cats/tiger"].split == "train"


def test_load_rgba_crops_and_fits(pictures: tuple[Picture, ...]) -> None:
    rgba = load_rgba(by_id()["animals/fish/moonwrasse"].path, longest=64)
    assert rgba.dtype == np.uint8 and rgba.shape[2] == 4 and max(rgba.shape[:2]) == 64
    assert rgba[..., 3].max() == 255
