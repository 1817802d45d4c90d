"""Where the features of a shot come from: renderings of a bank, varied or as they are, classes of ImageNet, or nothing in particular."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from data_recipes.synth.backgrounds import Background
from data_recipes.synth.clips import PLACES, Item, Shot
from data_recipes.synth.features import FeatureBank, rendering
from data_recipes.synth.imagenet import PrototypeMaps, class_item, imagenet_classes
from data_recipes.synth.pictures import Picture, stamps
from data_recipes.synth.variations import SINGLE, Variations
from vlm.errors import ConfigError

# How often each arrangement is shown, for stamps and for ImageNet classes.
_STAMPS = {"middle": 0.36, "left": 0.11, "right": 0.11, "two": 0.13, "three": 0.1, "pair": 0.12, "triple": 0.07}
_CLASSES = {"full": 0.4, "middle": 0.22, "left": 0.1, "right": 0.1, "two": 0.07, "three": 0.05, "pair": 0.06}


@dataclass(frozen=True)
class Source:
    """A shot without its times, and where its features come from: bank rows as they are or varied, or classes in an arrangement."""

    shot: Shot
    bank: FeatureBank | None = None
    rows: tuple[int, ...] = ()
    variations: Variations | None = None
    maps: PrototypeMaps | None = None
    arrangement: str = ""
    class_ids: tuple[int, ...] = ()

    @property
    def nouns(self) -> set[str]:
        """Of what it shows."""
        return {i.name.noun for i in self.shot.items}

    def features(self, rng: np.random.Generator) -> np.ndarray:
        """One map, float16 ``[49, 1280]``."""
        if self.variations is not None:
            return self.variations.draw(self.rows, rng)
        if self.bank is not None:
            return np.asarray(self.bank.features[self.rows[0]])
        if self.maps is None:
            raise ConfigError("this shot is drawn, it has no features")
        if not self.class_ids:
            return self.maps.draw_vague(rng)
        if len(self.class_ids) == 2:
            return self.maps.draw_pair(*self.class_ids, rng)
        return self.maps.draw(self.class_ids[0], self.arrangement, rng)


@cache
def trained_maps() -> PrototypeMaps:
    """The maps over the training bank; shared, as their statistics take seconds."""
    return PrototypeMaps()


def choose(weights: dict[str, float], rng: np.random.Generator) -> str:
    """One of the keys, as often as its weight says."""
    names = list(weights)
    p = np.array(list(weights.values()))
    return names[int(rng.choice(len(names), p=p / p.sum()))]


def bank_source(bank: FeatureBank, rng: np.random.Generator) -> Source:
    """A rendering of the bank."""
    row = int(rng.choice(bank.by_arrangement[choose(_STAMPS, rng)]))
    shown = bank.rows[row]
    return Source(Shot(0.0, 1.0, shown.items, shown.background, shown.motion), bank, (row,))


def varied_source(source: Source, variations: Variations, rng: np.random.Generator) -> Source:
    """A shot of one picture varied, or of two composed from varied single ones; others stay as they are."""
    bank = variations.bank
    arrangement = bank.rows[source.rows[0]].arrangement
    if arrangement in SINGLE:
        return replace(source, variations=variations)
    rows = tuple(int(rng.choice(bank.where(side))) for side in ("left", "right"))
    items = tuple(bank.rows[row].items[0] for row in rows)
    if arrangement != "pair" or items[0].name.noun == items[1].name.noun:
        return source
    return Source(replace(source.shot, items=items), bank, rows, variations)


def class_source(maps: PrototypeMaps, rng: np.random.Generator) -> Source:
    """One class of ImageNet, or two, in an arrangement."""
    arrangement = choose(_CLASSES, rng)
    places = {"full": ("middle",), "two": ("left", "right"), "three": PLACES, "pair": ("left", "right")}.get(
        arrangement, (arrangement,)
    )
    distinct = 2 if arrangement == "pair" else 1
    ids = tuple(int(i) for i in rng.choice(len(imagenet_classes()), distinct, replace=False))
    items: tuple[Item, ...] = tuple(class_item(ids[i % distinct], place) for i, place in enumerate(places))
    if len(items) > 1 and distinct == 1 and not items[0].name.countable:
        arrangement, items = "middle", (class_item(ids[0], "middle"),)
    return Source(Shot(0.0, 1.0, items, Background("plain", 0)), maps=maps, arrangement=arrangement, class_ids=ids)


def drawn_source(split: str, rng: np.random.Generator) -> Source:
    """Pictures that are drawn, not known by features."""
    arrangement = choose(_STAMPS, rng)
    pictures = _pictures(split)
    chosen = [
        pictures[int(i)] for i in rng.choice(len(pictures), {"pair": 2, "triple": 3}.get(arrangement, 1), replace=False)
    ]
    if len({p.name.noun for p in chosen}) < len(chosen):
        chosen = chosen[:1]
        arrangement = "middle"
    drawn = rendering(arrangement, chosen, rng)
    return Source(Shot(0.0, 1.0, drawn.items, drawn.background, drawn.motion))


@cache
def _pictures(split: str) -> tuple[Picture, ...]:
    return tuple(p for p in stamps() if p.split == split)


def vague_source(maps: PrototypeMaps) -> Source:
    """A shot of which nothing can be said."""
    return Source(Shot(0.0, 1.0, (), Background("plain", 0)), maps=maps)
