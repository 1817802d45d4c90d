"""Vision features of many renderings, computed once: the vision tower is frozen, so training can start after it.

A `FeatureBank` is a memory-mapped file ``[N, 49, 1280]`` float16 in the cache with the plan of what row i shows. Building it
is resumable: rows are written in order, and a count of finished rows is kept beside the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.sample import rng_for
from data_recipes.synth.backgrounds import KINDS, Background
from data_recipes.synth.clips import MOTIONS, PLACES, Item, Shot, render_shot
from data_recipes.synth.pictures import Picture, colour_of, stamps
from vlm.checkpoints import backbone, cache_dir
from vlm.errors import ConfigError

GRID, WIDTH = (7, 7), 1280
ASPECTS = (1.0, 4 / 3, 16 / 9)
_EDITION = 1  # raise it when the plan or the drawing changes
_BATCH = 16


@dataclass(frozen=True)
class Rendering:
    """One picture of the plan: a shot at one moment.

    Attributes:
        arrangement: ``middle``, ``left``, ``right``, ``two``, ``three`` (copies), ``pair``, ``triple`` (different things)
            or ``empty``.
        items: What is in it.
        background: What is behind.
        motion, progress: As in `data_recipes.synth.clips.render_shot`.
        aspect: Width over height of the video it is a frame of.
    """

    arrangement: str
    items: tuple[Item, ...]
    background: Background
    motion: str
    progress: float
    aspect: float

    def draw(self, side: int = 224) -> np.ndarray:
        """uint8 ``[side, side, 3]``."""
        shot = Shot(0.0, 1.0, self.items, self.background, self.motion)
        return render_shot(shot, self.progress, (side, side), aspect=self.aspect)


@dataclass(frozen=True)
class PlanSize:
    """How many renderings of each arrangement: per picture, and of several different pictures or none in all."""

    per_picture: dict[str, int] = field(
        default_factory=lambda: {"middle": 3, "left": 1, "right": 1, "two": 1, "three": 1}
    )
    pairs: int = 900
    triples: int = 500
    empty: int = 150


PLAN_SIZES = {
    "train": PlanSize(),
    "picture": PlanSize({"middle": 2, "left": 1, "right": 1, "two": 1, "three": 1}, pairs=150, triples=80, empty=20),
    "class": PlanSize({"middle": 2, "left": 1, "right": 1, "two": 1, "three": 1}, pairs=80, triples=40, empty=10),
}


@cache
def plan(split: str) -> tuple[Rendering, ...]:
    """What the rows of a split's bank show; the same on every machine.

    Raises:
        ConfigError: Unknown split.
        DataError: The pictures cannot be had here.
    """
    if split not in PLAN_SIZES:
        raise ConfigError(f"split {split!r} is not one of {tuple(PLAN_SIZES)}")
    size = PLAN_SIZES[split]
    pictures = [p for p in stamps() if p.split == split]
    rng = rng_for(_EDITION, list(PLAN_SIZES).index(split))
    rows: list[Rendering] = []
    for picture in pictures:
        for arrangement, times in size.per_picture.items():
            rows += [rendering(arrangement, [picture], rng) for _ in range(times if fits(picture, arrangement) else 1)]
    for arrangement, times, count in (("pair", size.pairs, 2), ("triple", size.triples, 3), ("empty", size.empty, 0)):
        for _ in range(times):
            chosen = [pictures[i] for i in rng.choice(len(pictures), count, replace=False)]
            if len({p.name.noun for p in chosen}) == count:
                rows.append(rendering(arrangement, chosen, rng))
    return tuple(rows)


def fits(picture: Picture, arrangement: str) -> bool:
    """Whether several copies of it make sense."""
    return picture.name.countable or arrangement not in ("two", "three")


_PLACES: dict[str, tuple[str, ...]] = {
    "two": ("left", "right"),
    "three": PLACES,
    "pair": ("left", "right"),
    "triple": PLACES,
    "empty": (),
}


def rendering(arrangement: str, pictures: list[Picture], rng: np.random.Generator) -> Rendering:
    """Lay pictures out by chance: one for most arrangements, two for ``pair``, three for ``triple``, none for ``empty``.

    A picture of which several copies make no sense ("two moons") is shown once.
    """
    if len(pictures) == 1 and not fits(pictures[0], arrangement):
        arrangement = "middle"
    places = _PLACES.get(arrangement, (arrangement,))
    copies = pictures * len(places) if len(pictures) == 1 else pictures
    items = tuple(item_of(p, place, rng) for p, place in zip(copies, places, strict=False))
    return Rendering(
        arrangement,
        items,
        Background(KINDS[int(rng.integers(len(KINDS)))], int(rng.integers(1 << 31))),
        MOTIONS[int(rng.integers(len(MOTIONS)))],
        float(rng.random()),
        ASPECTS[int(rng.integers(len(ASPECTS)))],
    )


def item_of(picture: Picture, place: str, rng: np.random.Generator) -> Item:
    """A picture at a place, a little smaller and shifted by chance."""
    return Item(
        name=picture.name,
        place=place,
        colour=colour_of(picture.id),
        picture=picture.id,
        scale=float(rng.uniform(0.7, 1.0)),
        rise=float(rng.uniform(-0.06, 0.06)),
    )


@cache
def tower() -> Any:
    """EfficientNet-lite0 with its classifier, in evaluation mode (a timm model)."""
    import timm
    import torch
    from safetensors.torch import load_file

    folder = backbone("efficientnet-lite0")
    config = json.loads((folder / "config.json").read_text())
    with torch.device("cpu"):  # kept for the whole process, so not on the meta device of who asks first
        model = timm.create_model(config["name"])
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    return model.eval().requires_grad_(False)


def classifier() -> tuple[np.ndarray, np.ndarray]:
    """Weight ``[1000, 1280]`` and bias ``[1000]`` of EfficientNet-lite0's classifier, float32."""
    head = tower().classifier
    return head.weight.numpy(), head.bias.numpy()


def extract(pixels: np.ndarray) -> np.ndarray:
    """Feature maps float16 ``[B, 49, 1280]`` of uint8 pictures ``[B, 224, 224, 3]``; pixels enter as ``(x - 127) / 128``."""
    import torch

    x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        features = tower().forward_features((x - 127.0) / 128.0)
    return features.flatten(2).transpose(1, 2).to(torch.float16).numpy()


@dataclass(frozen=True)
class FeatureBank:
    """Features of a plan.

    Attributes:
        features: float16 ``[N, 49, 1280]``, memory-mapped.
        rows: What each shows.
        pooled: Mean over the grid, float32 ``[N, 1280]``.
    """

    features: np.ndarray
    rows: tuple[Rendering, ...]
    pooled: np.ndarray

    def where(self, arrangement: str) -> np.ndarray:
        """Indices of the rows with this arrangement."""
        return self.by_arrangement[arrangement]

    @cached_property
    def by_arrangement(self) -> dict[str, np.ndarray]:
        """Row indices of every arrangement."""
        kinds = np.array([r.arrangement for r in self.rows])
        return {str(kind): np.flatnonzero(kinds == kind) for kind in np.unique(kinds)}


def bank_folder(split: str) -> Path:
    """Where the bank of a split is kept; it is whole when ``pooled.npy`` is there."""
    return cache_dir() / "features" / f"stamps-{split}-{_plan_key(plan(split))}"


@cache
def feature_bank(split: str) -> FeatureBank:
    """The features of a split, built on first use (minutes; resumable, with a progress bar)."""
    from filelock import FileLock

    rows = plan(split)
    folder = bank_folder(split)
    folder.mkdir(parents=True, exist_ok=True)
    path, count = folder / "features.f16", folder / "done.txt"
    with FileLock(str(folder / "lock")):
        _build(rows, path, count)
        features = np.memmap(path, np.float16, mode="r", shape=(len(rows), GRID[0] * GRID[1], WIDTH))
        pooled = _pooled(features, folder / "pooled.npy")
    return FeatureBank(features, rows, pooled)


def _pooled(features: np.ndarray, path: Path, *, step: int = 256) -> np.ndarray:
    if not path.exists():
        parts = [features[i : i + step].astype(np.float32).mean(1) for i in range(0, len(features), step)]
        partial = path.with_name("partial.npy")
        np.save(partial, np.concatenate(parts))
        partial.replace(path)
    return np.load(path)


def _plan_key(rows: tuple[Rendering, ...]) -> str:
    """Changes when the drawing changes, not when a thing is renamed."""
    drawn = [
        (r.background, r.motion, r.progress, r.aspect, [(i.picture, i.place, i.scale, i.rise) for i in r.items])
        for r in rows
    ]
    return f"{_EDITION}-{hashlib.sha256(repr(drawn).encode()).hexdigest()[:10]}"


def _build(rows: tuple[Rendering, ...], path: Path, count: Path) -> None:
    from tqdm import tqdm

    shape = (len(rows), GRID[0] * GRID[1], WIDTH)
    done = int(count.read_text()) if count.exists() and path.exists() else 0
    if done == len(rows):
        return
    store = np.memmap(path, np.float16, mode="r+" if done else "w+", shape=shape)
    with tqdm(total=len(rows), initial=done, desc=f"Features of {path.parent.name}", unit="picture") as bar:
        for first, pixels in _batches(rows, done):
            store[first : first + len(pixels)] = extract(pixels)
            store.flush()
            _write_count(count, first + len(pixels))
            bar.update(len(pixels))


def _batches(rows: tuple[Rendering, ...], first: int) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(first, len(rows), _BATCH):
        yield start, np.stack([r.draw() for r in rows[start : start + _BATCH]])


def _write_count(path: Path, count: int) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(str(count))
    partial.replace(path)


def main(splits: tuple[str, ...] = ("train", "picture", "class")) -> None:
    """Build the banks of these splits (``python -m data_recipes.synth.features``)."""
    for split in splits:
        feature_bank(split)


if __name__ == "__main__":
    main()
