"""Which names go together, and the names of things that a clip does not show."""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from data_recipes.synth.imagenet import class_of_name, imagenet_classes
from data_recipes.synth.pictures import Name, stamps


def related(a: str, b: str) -> bool:
    """Whether one noun may be said of the other: they share a word, or ImageNet calls them the same."""
    words = [set(re.findall(r"[a-z]+", n.lower())) - {"of", "the", "a", "in", "sign"} for n in (a, b)]
    ids = class_of_name()
    same = ids.get(a.lower(), -1) == ids.get(b.lower(), -2)
    return bool(words[0] & words[1]) or same


@cache
def vocabulary(split: str) -> tuple[Name, ...]:
    """Name of every picture of a split, so as often as its pictures show it."""
    return tuple(p.name for p in stamps() if p.split == split)


@cache
def _class_names() -> tuple[Name, ...]:
    return tuple(c.name for c in imagenet_classes())


def unrelated_names(
    shown: list[Name], rng: np.random.Generator, *, split: str, classes: float, count: int = 24
) -> list[Name]:
    """Names of things that are not shown, each as often as clips of the split show it, or a name alone would tell.

    Args:
        shown: What is shown.
        rng: Draws the names.
        split: Of the clips.
        classes: Share of ImageNet classes among what clips show.
        count: How many to draw; those related to what is shown are left out.
    """
    tables = [_class_names() if rng.random() < classes else vocabulary(split) for _ in range(count)]
    names = [table[int(rng.integers(len(table)))] for table in tables]
    return [n for n in names if not any(related(n.noun, s.noun) for s in shown)]
