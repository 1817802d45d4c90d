"""Random scenes of the shapes world: levels of difficulty, held-out combinations, and where things may go.

Every thing lives in a cell of its own (the whole frame, a half, or a quarter), so no shape ever hides another
and each stated time is visible. Two shapes that collide share a half.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from data_recipes.synth.shapes_render import COLOURS, DIGITS, SHAPES, random_background
from data_recipes.synth.shapes_scene import Beep, Scene, Thing, Track
from vlm.errors import ConfigError
from vlm.time import Span

HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    {
        ("circle", "orange"),
        ("square", "pink"),
        ("triangle", "blue"),
        ("star", "green"),
        ("cross", "yellow"),
        ("star", "purple"),
    }
)
"""(shape, colour) pairs that no training scene or question contains; training text only ever repeats them after the user."""

Cell = tuple[float, float, float, float]  # left, top, width, height


@dataclass(frozen=True)
class Level:
    """One step of the curriculum.

    Attributes:
        still: A picture and not a clip.
        shapes: Fewest and most shapes.
        seconds: Shortest and longest clip.
        frames: Fewest and most sampled frames.
        fps: Lowest and highest frame rate of the file.
        whole: Chance that a shape is visible all the time.
        longest: Longest span of the others, as a share of the clip; with 1 a quarter of them last to its end.
        change: Chance of one colour change in the clip.
        collide: Chance of one collision (of clips with two shapes or more).
        digit: Chance of a digit.
        needle: The digit lasts about one sampled frame instead of a longer span.
        beeps: Chance of one to three beeps; above 0 every clip has sound, if only silence.
    """

    still: bool = False
    shapes: tuple[int, int] = (1, 4)
    seconds: tuple[float, float] = (4.0, 20.0)
    frames: tuple[int, int] = (16, 24)
    fps: tuple[int, int] = (8, 30)
    whole: float = 0.2
    longest: float = 1.0
    change: float = 0.15
    collide: float = 0.15
    digit: float = 0.15
    needle: bool = False
    beeps: float = 0.0


LEVELS: dict[str, Level] = {
    "one": Level(still=True, shapes=(1, 1), digit=0.25),
    "stills": Level(still=True, digit=0.2),
    "glimpse": Level(seconds=(1.0, 6.0), frames=(2, 5), whole=0.4, change=0.05, collide=0.05),
    "short": Level(shapes=(1, 3), seconds=(2.0, 12.0), frames=(6, 12), change=0.1, collide=0.1),
    "clips": Level(seconds=(8.0, 30.0), frames=(24, 40)),
    "twenty": Level(seconds=(20.0, 20.0), frames=(32, 32), beeps=0.75),
    "brief": Level(shapes=(2, 4), seconds=(20.0, 20.0), frames=(32, 32), whole=0.0, longest=0.3),
    "sound": Level(seconds=(4.0, 20.0), frames=(16, 32), beeps=0.85),
    "beeps": Level(shapes=(1, 2), seconds=(2.0, 300.0), frames=(2, 8), change=0, collide=0, beeps=0.85),
    "needle": Level(shapes=(1, 2), seconds=(20.0, 120.0), frames=(24, 64), digit=0.9, needle=True, change=0, collide=0),
    "long": Level(shapes=(1, 3), seconds=(60.0, 600.0), frames=(96, 256), digit=0.9, needle=True, change=0, collide=0),
}


def level(name: str | Level) -> Level:
    """Look up a level by name.

    Raises:
        ConfigError: There is no such level.
    """
    if isinstance(name, Level):
        return name
    if name not in LEVELS:
        raise ConfigError(f"unknown level {name!r} of the shapes world; choose one of {', '.join(LEVELS)}")
    return LEVELS[name]


def pairs(split: str) -> list[tuple[str, str]]:
    """The (shape, colour) pairs a split may show: all without `HELD_OUT` for "train", all 40 for "heldout".

    Raises:
        ConfigError: ``split`` is neither.
    """
    every = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    if split == "train":
        return [pair for pair in every if pair not in HELD_OUT]
    if split == "heldout":
        return every
    raise ConfigError(f"unknown split {split!r}; choose 'train' or 'heldout'")


def random_scene(rng: np.random.Generator, step: Level, *, split: str, size: int, num_frames: int) -> Scene:
    """Draw a scene.

    Args:
        rng: Source of all randomness.
        step: What may happen.
        split: "train" or "heldout"; a held-out scene shows at least one pair of `HELD_OUT`.
        size: Side of the frames in pixels.
        num_frames: How many frames will be sampled; spans last at least two of them.
    """
    fps = 1.0 if step.still else float(rng.integers(step.fps[0], step.fps[1] + 1))
    frames = 1 if step.still else round(_between(rng, step.seconds) * fps)
    clock = _Clock(rng, duration=frames / fps, fps=fps, num_frames=num_frames, longest=step.longest)
    count = int(rng.integers(step.shapes[0], step.shapes[1] + 1))
    digit = count < 4 and rng.random() < step.digit
    collide = not step.still and count >= 2 and count + digit < 4 and rng.random() < step.collide
    chosen = _choose_pairs(rng, split, count)
    cells = _cells(rng, count + digit - collide)
    collision: tuple[float, Thing, Thing] | None = None
    things: list[Thing] = []
    if collide:
        collision = _collision(rng, clock, cells[-1], chosen[:2])
        things += collision[1:]
        cells, chosen = [cells[-1], cells[-1], *cells[:-1]], chosen[2:]
    spans = clock.spans(len(chosen), 1.0 if step.still else step.whole)
    things += [_shape(rng, *each) for each in zip(chosen, cells[len(things) :], spans, strict=False)]
    if not step.still and collision is None and rng.random() < step.change:
        things[-1] = _change_colour(rng, clock, things, split)
    if digit:
        always = 1.0 if step.still else step.whole
        things.append(_digit(rng, cells[len(things)], clock.needle() if step.needle else clock.spans(1, always)[0]))
    beeping, background = rng.random() < step.beeps, random_background(rng)
    beeps = clock.beeps() if beeping else ()
    return Scene(clock.duration, fps, size, background, tuple(_reading_order(things, cells)), beeps, collision)


def beep_times(
    rng: np.random.Generator, count: int, seconds: float, *, most: float, margin: float
) -> Iterator[tuple[float, float]]:
    """(start, end) in seconds of ``count`` beeps, each somewhere in its own equal part of the time.

    Args:
        rng: Source of all randomness; drawn from as the beeps are asked for.
        count: Number of beeps.
        seconds: The time.
        most: Longest beep, as a share of its part.
        margin: What is left free between two beeps at either end of a part, as a share of it. At the ends of the time it is
            added instead, so that some beeps begin or end with the clip.
    """
    for part, (left, right) in enumerate(itertools.pairwise(np.linspace(0.0, seconds, count + 1))):
        length = min(float(rng.uniform(0.3, 1.5)), most * (right - left))
        free = margin * (right - left)
        earliest = left + free if part > 0 else left - free
        latest = right - free - length if part < count - 1 else right + free - length
        start = min(max(float(rng.uniform(earliest, latest)), 0.0), seconds - length)
        yield start, start + length


class _Clock:
    """Draws times on the frame grid; starts of one scene keep a distance of about two sampled frames."""

    def __init__(
        self, rng: np.random.Generator, *, duration: float, fps: float, num_frames: int, longest: float = 1.0
    ) -> None:
        self.rng, self.duration, self.fps, self.longest = rng, duration, fps, longest
        self.gap = 2.0 * duration / max(num_frames, 4)
        self.sampled = duration / num_frames
        self.starts: list[float] = []

    def snap(self, t: float) -> float:
        return min(max(round(t * self.fps), 0) / self.fps, self.duration)

    def spans(self, count: int, whole: float) -> list[Span]:
        return [Span(0.0, self.duration) if self.rng.random() < whole else self.span() for _ in range(count)]

    def span(self) -> Span:
        """A random span that neither starts with the clip nor close to another start, if one can be found."""
        for _ in range(20):
            start = float(self.rng.uniform(0.0, 0.75)) * self.duration
            start = 0.0 if start < 0.04 * self.duration else start
            if all(abs(start - other) >= self.gap for other in self.starts):
                break
        self.starts.append(start)
        shortest = max(self.gap, 0.12 * self.duration)
        earliest = min(start + shortest, self.duration)
        latest = min(start + self.longest * self.duration, self.duration)
        lasts = self.longest == 1 and self.rng.random() < 0.25
        end = latest if lasts else float(self.rng.uniform(earliest, max(earliest, latest)))
        return self._grid(start, end)

    def needle(self) -> Span:
        """A span of about one sampled frame that surely covers one."""
        length = self.sampled * float(self.rng.uniform(1.02, 1.6))
        start = float(self.rng.uniform(0.0, max(self.duration - length, 0.0)))
        return self._grid(start, start + length)

    def beeps(self) -> tuple[Beep, ...]:
        times = beep_times(self.rng, int(self.rng.integers(1, 4)), self.duration, most=0.6, margin=0.1)
        return tuple(Beep(self._grid(*span), float(self.rng.uniform(400.0, 1600.0))) for span in times)

    def _grid(self, start: float, end: float) -> Span:
        first = self.snap(start)
        return Span(first, max(self.snap(end), min(first + 1 / self.fps, self.duration)))


def _between(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """Log-uniform between ``bounds``: short clips are as likely as long ones."""
    return float(np.exp(rng.uniform(np.log(bounds[0]), np.log(bounds[1]))))


def _choose_pairs(rng: np.random.Generator, split: str, count: int) -> list[tuple[str, str]]:
    """Distinct (shape, colour) pairs; held-out scenes start from a held-out pair."""
    allowed = pairs(split)
    chosen = [allowed[i] for i in rng.choice(len(allowed), size=count, replace=False)]
    if split == "heldout" and not HELD_OUT.intersection(chosen):
        hidden = sorted(HELD_OUT)
        chosen[int(rng.integers(count))] = hidden[int(rng.integers(len(hidden)))]
    return chosen


def _cells(rng: np.random.Generator, count: int) -> list[Cell]:
    """Disjoint cells in random order: the frame, two halves, or quarters."""
    cells: list[Cell]
    if count <= 1:
        cells = [(0.0, 0.0, 1.0, 1.0)]
    elif count == 2 and rng.random() < 0.7:
        cells = [(0, 0, 0.5, 1), (0.5, 0, 0.5, 1)] if rng.random() < 0.5 else [(0, 0, 1, 0.5), (0, 0.5, 1, 0.5)]
    else:
        cells = [(0.5 * column, 0.5 * row, 0.5, 0.5) for row in range(2) for column in range(2)]
    return [cells[i] for i in rng.permutation(len(cells))]


def _room(rng: np.random.Generator, cell: Cell, least: float = 0.115, most: float = 0.2) -> tuple[float, Cell]:
    """A radius that fits ``cell``, and the rectangle its centre may move in."""
    radius = float(rng.uniform(least, min(most, 0.44 * min(cell[2], cell[3]))))
    inner = (cell[0] + radius, cell[1] + radius, max(cell[2] - 2 * radius, 0.0), max(cell[3] - 2 * radius, 0.0))
    return radius, inner


def _point(rng: np.random.Generator, room: Cell) -> tuple[float, float]:
    return room[0] + room[2] * float(rng.random()), room[1] + room[3] * float(rng.random())


def _shape(rng: np.random.Generator, pair: tuple[str, str], cell: Cell, span: Span) -> Thing:
    radius, room = _room(rng, cell)
    shade = tuple(int(s) for s in rng.integers(-10, 11, size=3))
    angle = float(rng.uniform(-0.2, 0.2))
    return Thing(pair[0], pair[1], span, _track(rng, room, span), radius, angle, (shade[0], shade[1], shade[2]))


def _digit(rng: np.random.Generator, cell: Cell, span: Span) -> Thing:
    radius, room = _room(rng, cell, 0.16, 0.3)
    track = Track("still", ((span.start, *_point(rng, room)),))
    return Thing(DIGITS[rng.integers(10)], "white", span, track, radius)


def _track(rng: np.random.Generator, room: Cell, span: Span) -> Track:
    motion = ("still", "linear", "bounce", "circular")[rng.integers(4)]
    x, y = _point(rng, room)
    if motion == "circular":
        radius = 0.5 * min(room[2], room[3]) * float(rng.uniform(0.7, 1.0))
        centre = (room[0] + 0.5 * room[2], room[1] + 0.5 * room[3])
        period = float(rng.uniform(0.25, 0.6)) * max(span.end - span.start, 0.1)
        return Track(motion, ((span.start, *centre),), (radius, period, float(rng.uniform(0, 2 * np.pi))))
    if motion == "linear":
        far = _point(rng, room)
        return Track(motion, ((span.start, x, y), (span.end, *far)))
    if motion == "bounce":
        legs = int(rng.integers(3, 6))
        times = np.linspace(span.start, span.end, legs + 1)
        wide = room[2] >= room[3]
        knots = []
        for leg, t in enumerate(times):
            side = float(leg % 2)
            place = (room[0] + side * room[2], y) if wide else (x, room[1] + side * room[3])
            knots.append((float(t), *place))
        return Track(motion, tuple(knots))
    return Track("still", ((span.start, x, y),))


def _collision(
    rng: np.random.Generator, clock: _Clock, cell: Cell, chosen: list[tuple[str, str]]
) -> tuple[float, Thing, Thing]:
    """Two shapes meet in ``cell`` at one instant and return the way they came."""
    span = clock.span()
    hit = clock.snap(span.start + float(rng.uniform(0.3, 0.7)) * (span.end - span.start))
    wide = cell[2] >= cell[3]
    radius = min(0.115, 0.21 * max(cell[2], cell[3]))
    middle = (cell[0] + 0.5 * cell[2], cell[1] + 0.5 * cell[3])
    things = []
    for side, pair in zip((-1.0, 1.0), chosen, strict=True):
        away = side * (0.5 * (cell[2] if wide else cell[3]) - radius)
        meet = side * 0.85 * radius
        step = ((away, 0.0), (meet, 0.0)) if wide else ((0.0, away), (0.0, meet))
        (ax, ay), (mx, my) = step
        knots = tuple((t, middle[0] + x, middle[1] + y)
                      for t, x, y in ((span.start, ax, ay), (hit, mx, my), (span.end, ax, ay)))  # fmt: skip
        things.append(Thing(pair[0], pair[1], span, Track("collide", knots), radius))
    return hit, things[0], things[1]


def _change_colour(rng: np.random.Generator, clock: _Clock, things: list[Thing], split: str) -> Thing:
    """The last thing, made to change its colour somewhere in the middle of its span."""
    thing = things[-1]
    taken = {(other.shape, other.colour) for other in things}
    free = [pair for pair in pairs(split) if pair[0] == thing.shape and pair not in taken]
    length = thing.visible.end - thing.visible.start
    when = clock.snap(thing.visible.start + float(rng.uniform(0.35, 0.65)) * length)
    if not free or length < 2.5 * clock.gap or not thing.visible.start < when < thing.visible.end:
        return thing
    return replace(thing, turns=(when, free[int(rng.integers(len(free)))][1]))


def _reading_order(things: list[Thing], cells: list[Cell]) -> list[Thing]:
    """By rows of cells, then from left to right."""
    homes = {id(thing): (cell[1], thing.track.knots[0][1]) for thing, cell in zip(things, cells, strict=False)}
    return sorted(things, key=lambda thing: homes[id(thing)])
