"""Questions in ordinary words about a scene of the shapes world, with exact answers.

Each kind of question has several phrasings for training and others that only the held-out split uses. Times in answers are
neutral marks, ``{t:3.0}`` (seconds).
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from data_recipes.sample import mark
from data_recipes.synth.shapes_phrasings import NUMBERS, PHRASINGS
from data_recipes.synth.shapes_render import COLOURS, SHAPES
from data_recipes.synth.shapes_scene import Appearance, Scene, Thing
from data_recipes.synth.shapes_world import pairs
from vlm.time import Span, frame_edges

_MOVES = {
    "still": "it stays still",
    "linear": "it moves in a straight line",
    "bounce": "it bounces",
    "circular": "it moves in a circle",
    "collide": "it hits another shape",
}


@dataclass(frozen=True)
class Turn:
    """One question with its answer.

    Attributes:
        kind: Key of `PHRASINGS`.
        question: As the user asks it.
        answer: The true answer, times as ``{t:...}`` marks.
        spans: True spans (s) behind the answer, if it has any.
        items: What a correct answer must name, for kinds scored as sets.
        choices: How many answers are equally likely a priori (chance level = 1 / choices), 0 if that makes no sense.
    """

    kind: str
    question: str
    answer: str
    spans: tuple[Span, ...] = field(default=())
    items: tuple[str, ...] = field(default=())
    choices: int = 0


def article(noun: str) -> str:
    """``noun`` with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def plural(shape: str) -> str:
    """More than one ``shape``."""
    return shape + ("es" if shape.endswith("s") else "s")


def span_words(span: Span) -> str:
    """For example "from {t:3.00} to {t:7.50}"."""
    return f"from {mark(span.start)} to {mark(span.end)}"


def at_words(second: float) -> str:
    """For example "at {t:3.00}"."""
    return f"at {mark(second)}"


class Asker:
    """Asks about one scene.

    Args:
        scene: What is asked about.
        rng: Chooses phrasings, things and order.
        split: "train" or "heldout" (its own phrasings, all colour-shape pairs).
        still: The scene is shown as one picture.
        sound: It can be heard, if only as silence.
        times: Seconds of the sampled frames. Answers then give times as these frames show them, halfway between two frames, which is
            what can be learnt from them; the true times by default.

    Attributes:
        seen: What shows, in the order of lists: by start; what starts together by colour and shape, so that an answer can be foretold.
    """

    def __init__(
        self,
        scene: Scene,
        rng: np.random.Generator,
        *,
        split: str,
        still: bool,
        sound: bool = False,
        times: np.ndarray | None = None,
    ) -> None:
        self.scene, self.rng, self.split, self.still, self.sound = scene, rng, split, still, sound
        self.frames = None if still else times
        seen = [replace(a, span=self._as_seen(a.span)) for a in scene.appearances()]
        self.seen = sorted(seen, key=lambda a: (a.span.start, tuple(COLOURS).index(a.colour), SHAPES.index(a.shape)))

    def _as_seen(self, span: Span) -> Span:
        """Edges halfway between the frames that show it and their neighbours; a span between two frames stays as it is."""
        if (times := self.frames) is None:
            return span
        edges = frame_edges(times, self.scene.duration)
        shown = np.flatnonzero((times >= span.start - 1e-6) & (times < span.end - 1e-6))
        return Span(float(edges[shown[0]]), float(edges[shown[-1] + 1])) if len(shown) else span

    def turns(self, most: int, kinds: tuple[str, ...] | None = None) -> list[Turn]:
        """Up to ``most`` different questions in random order; ``kinds`` restricts them."""
        found = [turn for turn in self.every() if kinds is None or turn.kind in kinds]
        return [found[i] for i in self.rng.permutation(len(found))[:most]]

    def every(self) -> list[Turn]:
        """Every kind of question that makes sense here, those about single things once or twice."""
        turns = [self._list(), self._colours(), self._count(), *self._count_shape(), *self._count_colour()]
        turns += [self._presence(True), self._presence(False), *self._attributes()]
        turns += [*self._digits(), self._repeat()]
        if self.still:
            return [*turns, *self._where(), self._caption()]
        turns += [*self._when(), *self._order(), *self._motion(), *self._turn(), *self._collision(), *self._beeps()]
        return [*turns, *self._at(), self._times(), self._describe()]

    # -- phrasing ------------------------------------------------------------------------------------------------------

    def _turn_of(self, kind: str, answer: str, **details: object) -> Turn:
        words = {key: str(details.pop(key)) for key in ("a", "the", "the2", "c", "s", "ss", "t") if key in details}
        phrasings = PHRASINGS[kind][1 if self.split == "heldout" else 0]
        medium = "picture" if self.still else ("video", "clip")[int(self.rng.integers(2))]
        question = phrasings[int(self.rng.integers(len(phrasings)))].format(m=medium, **words)
        return Turn(kind, question, answer, **details)  # type: ignore[arg-type]

    def _pick(self, appearances: list[Appearance], most: int = 1) -> list[Appearance]:
        return [appearances[i] for i in self.rng.permutation(len(appearances))[:most]]

    def _steady(self) -> list[Appearance]:
        """Appearances of shapes that never change colour."""
        return [a for a in self.seen if a.thing.turns is None]

    # -- what there is -------------------------------------------------------------------------------------------------

    def _list(self) -> Turn:
        items = tuple(article(a.noun) for a in self.seen)
        return self._turn_of("list", ", ".join(items), items=items, choices=0)

    def _colours(self) -> Turn:
        """The other way round than a list, shapes before colours."""
        items = tuple(f"{a.shape} {a.colour}" for a in self.seen)
        return self._turn_of("colours", ", ".join(items), items=items, choices=0)

    def _attributes(self) -> list[Turn]:
        shapes, colours = Counter(a.shape for a in self.seen), Counter(a.colour for a in self.seen)
        turns = [self._turn_of("colour", a.colour, s=a.shape, items=(a.colour,), choices=len(COLOURS))
                 for a in self._pick([a for a in self._steady() if shapes[a.shape] == 1], 2)]  # fmt: skip
        named = self._pick([a for a in self._steady() if colours[a.colour] == 1], 2)
        for a in named:
            answer = article(a.shape)
            turns.append(self._turn_of("shape", answer, c=a.colour, items=(answer,), choices=len(SHAPES)))
        return turns

    def _count(self) -> Turn:
        return self._turn_of("count", _counted(self.seen), choices=4)

    def _count_shape(self) -> list[Turn]:
        turns = []
        for shape in self._some([a.shape for a in self.seen], SHAPES):
            answer = _counted([a for a in self.seen if a.shape == shape])
            turns.append(self._turn_of("count_shape", answer, ss=plural(shape), choices=5))
        return turns

    def _count_colour(self) -> list[Turn]:
        turns = []
        for colour in self._some([a.colour for a in self.seen], tuple(COLOURS)):
            answer = _counted([a for a in self.seen if a.colour == colour])
            turns.append(self._turn_of("count_colour", answer, c=colour, choices=5))
        return turns

    def _some(self, present: list[str], every: tuple[str, ...]) -> list[str]:
        """Two different ones, each drawn from what is there two times out of three (as often as it is there), else from all."""
        chosen: list[str] = []
        while len(chosen) < 2:
            pool = present if self.rng.random() < 0.67 else list(every)
            one = pool[int(self.rng.integers(len(pool)))]
            if one not in chosen:
                chosen.append(one)
        return chosen

    def _presence(self, yes: bool) -> Turn:
        there = {(a.shape, a.colour) for a in self.seen}
        if yes:
            shape, colour = sorted(there)[int(self.rng.integers(len(there)))]
        else:
            shape, colour = self._absent(there)
        noun = article(f"{colour} {shape}")
        return self._turn_of("presence", "yes" if yes else "no", a=noun, choices=2)

    def _absent(self, there: set[tuple[str, str]]) -> tuple[str, str]:
        """A pair that is not there; half of the time with a shape or a colour that is."""
        absent = [pair for pair in pairs(self.split) if pair not in there]
        near = [p for p in absent if any(p[0] == shape or p[1] == colour for shape, colour in there)]
        pool = near if near and self.rng.random() < 0.5 else absent
        return pool[int(self.rng.integers(len(pool)))]

    def _where(self) -> list[Turn]:
        turns = []
        for a in self._pick(self.seen, 2):
            if place := _place(a.thing):
                turns.append(self._turn_of("where", place, the=f"the {a.noun}", choices=9))
        return turns

    def _caption(self) -> Turn:
        """What is where, by rows of the picture."""
        nouns = [f"the digit {t.shape}" if t.is_digit else article(f"{t.colour} {t.shape}") for t in self.scene.things]
        parts = [f"{noun} {_place(t)}".strip() for noun, t in zip(nouns, self.scene.things, strict=True)]
        return self._turn_of("caption", ", ".join(parts), items=tuple(nouns))

    def _digits(self) -> list[Turn]:
        turns = []
        for thing in self.scene.digits:
            turns += [self._turn_of("digit", thing.shape, items=(thing.shape,), choices=10)]
            if not self.still:
                span = self._as_seen(thing.visible)
                turns.append(self._turn_of("digit_when", span_words(span), spans=(span,)))
        if self.rng.random() < 0.3:
            turns.append(self._turn_of("digit_presence", "yes" if self.scene.digits else "no", choices=2))
        return turns

    def _repeat(self) -> Turn:
        """Names said after the user: any pair whatever, so that written words do not show which pairs training pictures lack."""
        every = pairs("heldout")
        chosen = self.rng.choice(len(every), size=int(self.rng.integers(1, 4)), replace=False)
        words = ", ".join(article(f"{colour} {shape}") for shape, colour in (every[i] for i in chosen))
        return self._turn_of("repeat", words, t=words)

    # -- when ----------------------------------------------------------------------------------------------------------

    def _when(self) -> list[Turn]:
        turns = []
        for a in self._pick(self.seen, 3):
            words = {"a": article(a.noun), "the": f"the {a.noun}"}
            turns.append(self._turn_of("when", span_words(a.span), spans=(a.span,), **words))
        gone = [a for a in self._steady() if a.span.end < self.scene.duration]
        turns += [self._turn_of("end", at_words(a.span.end), the=f"the {a.noun}", spans=(Span(a.span.end, a.span.end),))
                  for a in self._pick(gone)]  # fmt: skip
        return turns

    def _at(self) -> list[Turn]:
        """What is there at a moment that is not close to a change, if one can be found."""
        changes = [edge for a in self.seen for edge in (a.span.start, a.span.end)]
        for _ in range(10):
            second = float(self.rng.uniform(0.0, 1.0)) * self.scene.duration
            if all(abs(second - change) > 0.04 * self.scene.duration for change in changes):
                items = tuple(article(a.noun) for a in self.seen if a.span.start <= second < a.span.end)
                return [self._turn_of("at", ", ".join(items) or "nothing", t=mark(second), items=items)]
        return []

    def _times(self) -> Turn:
        """Start and end of everything, in keywords."""
        parts = [f"{a.noun} {mark(a.span.start)} {mark(a.span.end)}" for a in self.seen]
        return self._turn_of("times", ", ".join(parts), spans=tuple(a.span for a in self.seen))

    def _describe(self) -> Turn:
        items = tuple(article(a.noun) for a in self.seen)
        parts = [f"{noun} {span_words(a.span)}" for noun, a in zip(items, self.seen, strict=True)]
        return self._turn_of("describe", ", ".join(parts), spans=tuple(a.span for a in self.seen), items=items)

    def _order(self) -> list[Turn]:
        steady = self._steady()
        if len(steady) < 2 or len(steady) != len(self.seen):
            return []
        turns = []
        first, second, last = steady[0], steady[1], steady[-1]
        if first.span.start < second.span.start:
            turns.append(self._turn_of("first", article(first.noun), items=(article(first.noun),), choices=len(steady)))
        if last.span.start > steady[-2].span.start:
            turns.append(self._turn_of("last", article(last.noun), items=(article(last.noun),), choices=len(steady)))
        if all(a.span.start < b.span.start for a, b in itertools.pairwise(steady)):
            items = tuple(article(a.noun) for a in steady)
            turns.append(self._turn_of("order", ", ".join(items), items=items))
        one, two = self._pick(steady, 2)
        if one.span.start != two.span.start:
            words = {"the": f"the {one.noun}", "the2": f"the {two.noun}"}
            earlier = one if one.span.start < two.span.start else two
            turns.append(self._turn_of("which_first", f"the {earlier.noun}", choices=2, **words))
            turns.append(self._turn_of("before", "yes" if earlier is one else "no", choices=2, **words))
        return turns

    def _motion(self) -> list[Turn]:
        return [self._turn_of("motion", _MOVES[a.thing.track.motion], the=f"the {a.noun}", choices=len(_MOVES))
                for a in self._pick(self._steady())]  # fmt: skip

    def _turn(self) -> list[Turn]:
        turns = []
        for thing in self.scene.shapes:
            if thing.turns is not None:
                second, colour = thing.turns
                the, change = f"the {thing.colour} {thing.shape}", Span(second, second)
                turns.append(self._turn_of("turn_when", at_words(second), the=the, c=colour, spans=(change,)))
                turns.append(self._turn_of("turn_to", colour, the=the, items=(colour,), choices=len(COLOURS)))
        return turns

    def _collision(self) -> list[Turn]:
        if self.scene.collision is None:
            return []
        second, one, two = self.scene.collision
        words = {"the": f"the {one.colour} {one.shape}", "the2": f"the {two.colour} {two.shape}"}
        return [self._turn_of("collide", at_words(second), spans=(Span(second, second),), **words)]

    def _beeps(self) -> list[Turn]:
        if not self.scene.beeps and not self.sound:
            return []
        spans = tuple(beep.span for beep in self.scene.beeps)
        when, number = ", ".join(span_words(span) for span in spans), NUMBERS[len(spans)]
        counts = [self._turn_of("beep_count", f"{when}: {number}" if spans else number, choices=4) for _ in range(2)]
        return [*counts, *(self._turn_of("beep_when", when, spans=spans) for _ in range(2 if spans else 0))]


def _counted(seen: list[Appearance]) -> str:
    """What is there and then how many, because a small model counts names better than pictures; a thing counts once."""
    nouns: dict[int, str] = {}
    for a in seen:
        nouns.setdefault(id(a.thing), article(a.noun))
    number = NUMBERS[len(nouns)]
    return f"{', '.join(nouns.values())}: {number}" if nouns else number


def _place(thing: Thing) -> str:
    """In words, where a still thing is; empty if it is too close to a border of two thirds of the frame."""
    x, y = thing.track.at(0.0)
    words = " ".join(word for word in (_third(y, "top", "bottom"), _third(x, "left", "right")) if word)
    return "" if "?" in words else f"at the {words}" if words else "in the middle"


def _third(value: float, low: str, high: str) -> str:
    """``low``, nothing or ``high`` for the three thirds of the frame; "?" close to a border of two thirds."""
    if min(abs(value - 0.36), abs(value - 0.64)) < 0.04:
        return "?"
    return low if value < 0.36 else high if value > 0.64 else ""
