"""Questions about when that do not name what they ask about: one has to find out first, from order, length, motion, colour or sound.

As in LITA's reasoning temporal localisation (2403.19046 §4) an answer says when, and then why. Truth is exact, because the scene is drawn.
Held out are kinds of question (`HELD_OUT_KINDS`), phrasings of the others, and the held-out pairs of the world. (All ours.)
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np

from data_recipes.sample import REASON
from data_recipes.synth.shapes_questions import Asker, Turn, article, span_words
from data_recipes.synth.shapes_scene import Appearance, Scene
from vlm.errors import ConfigError
from vlm.time import Span

HELD_OUT_KINDS = ("shortest", "before", "after_gone")
"""Kinds of question that training never asks."""

# kind -> (phrasings for training, phrasings for the held-out split only). {m} is the medium.
PHRASINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "last": (
        ("When is the shape visible that comes last?", "When can you see the last shape?", "When is the last shape in the {m}?"),
        ("When do you see the shape that appears last?",),
    ),
    "next": (
        ("When is the shape visible that comes right after {the}?", "What comes right after {the}, and when?",
         "When can you see the next shape after {the}?"),
        ("When do you see the shape that appears right after {the}?",),
    ),
    "before": (
        ("When is the shape visible that comes right before {the}?", "When can you see the shape before {the}?"),
        ("When do you see the shape that appears right before {the}?",),
    ),
    "longest": (
        ("When is the shape visible that stays longest?", "When can you see the shape that is there for the longest time?"),
        ("When do you see the shape that is shown longest?",),
    ),
    "shortest": (
        ("When is the shape visible that stays for the shortest time?",),
        ("When do you see the shape that is shown for the shortest time?",),
    ),
    "mover": (
        ("When is the shape visible that {moves}?", "When can you see the shape that {moves}?"),
        ("When do you see the shape that {moves}?",),
    ),
    "changed": (
        ("When does the shape that turns another colour have its second colour?",
         "When can you see the second colour of the shape that changes?"),
        ("When do you see the second colour of the shape that turns?",),
    ),
    "hit": (
        ("When is the shape visible that {the} hits?", "When can you see what {the} hits?"),
        ("When do you see the shape that {the} hits?",),
    ),
    "together": (
        ("When are {the} and {the2} visible at the same time?", "When can you see both {the} and {the2}?"),
        ("When do you see {the} and {the2} together?",),
    ),
    "alone": (
        ("When is only one shape visible?", "When is a shape alone in the {m}?"),
        ("When do you see only one shape?",),
    ),
    "after_gone": (
        ("When is {the} visible after {the2} has gone?",),
        ("When do you see {the} while {the2} is no longer there?",),
    ),
    "beep_next": (
        ("When is the first beep after {the} comes?", "When can you hear the first beep after {the} appears?"),
        ("When do you hear a beep for the first time after {the} appears?",),
    ),
}  # fmt: skip

_MOVES = {
    "linear": "moves in a straight line",
    "bounce": "bounces",
    "circular": "moves in a circle",
    "still": "stays still",
}
_CLEAR = 0.04  # of the clip: nearer starts, ends and lengths are not told apart


class Reasoner:
    """Asks about one scene.

    Args:
        scene: What is asked about.
        rng: Chooses phrasings, things and order.
        split: "train" or "heldout".
        kinds: Only these; default: for "train" all that are not held out, for "heldout" all.
        sound: Beeps may be asked about.
        times: See `Asker`.

    Raises:
        ConfigError: There is no such split or kind.
    """

    def __init__(
        self,
        scene: Scene,
        rng: np.random.Generator,
        *,
        split: str,
        kinds: tuple[str, ...] | None = None,
        sound: bool = False,
        times: np.ndarray | None = None,
    ) -> None:
        if split not in ("train", "heldout"):
            raise ConfigError(f"unknown split {split!r}; choose 'train' or 'heldout'")
        default = tuple(k for k in PHRASINGS if split == "heldout" or k not in HELD_OUT_KINDS)
        self.kinds = default if kinds is None else kinds
        if unknown := [k for k in self.kinds if k not in PHRASINGS]:
            raise ConfigError(f"kind {unknown[0]!r} of reasoning is not one of {', '.join(PHRASINGS)}")
        self.scene, self.rng, self.split, self.sound = scene, rng, split, sound
        self.seen = Asker(scene, rng, split=split, still=False, times=times).seen
        self.gap = _CLEAR * scene.duration

    def turns(self, most: int) -> list[Turn]:
        """Up to ``most`` different questions in random order, at most one of each kind."""
        found = list(self.every())
        return [found[i] for i in self.rng.permutation(len(found))[:most]]

    def every(self) -> Iterator[Turn]:
        """One question of every kind that has exactly one answer here."""
        for kind in self.kinds:
            options = list(getattr(self, f"_{kind}")())
            if options:
                words, spans, because = options[int(self.rng.integers(len(options)))]
                yield self._turn(kind, words, spans, because)

    def _turn(self, kind: str, words: dict[str, str], spans: tuple[Span, ...], because: str) -> Turn:
        phrasings = PHRASINGS[kind][self.split == "heldout"]
        medium = ("video", "clip")[int(self.rng.integers(2))]
        question = phrasings[int(self.rng.integers(len(phrasings)))].format(m=medium, **words)
        when = ", ".join(span_words(span) for span in spans)
        return Turn(REASON + kind, question, f"{when}: {because}", spans=spans)

    # -- each kind: (words of the question, spans, why) for every way to ask it that has one clear answer --------------------------

    def _last(self) -> Iterator[tuple[dict[str, str], tuple[Span, ...], str]]:
        if len(self.seen) > 1 and self.seen[-1].span.start > self.seen[-2].span.start + self.gap:
            yield {}, (self.seen[-1].span,), f"{article(self.seen[-1].noun)} comes last"

    def _next(self) -> Iterator[tuple[dict[str, str], tuple[Span, ...], str]]:
        for a, b in self._neighbours():
            yield {"the": f"the {a.noun}"}, (b.span,), f"{article(b.noun)} comes after the {a.noun}"

    def _before(self) -> Iterator[tuple[dict[str, str], tuple[Span, ...], str]]:
        for a, b in self._neighbours():
            yield {"the": f"the {b.noun}"}, (a.span,), f"{article(a.noun)} comes before the {b.noun}"

    def _neighbours(self) -> Iterator[tuple[Appearance, Appearance]]:
        """Two that follow each other, when no third starts near either."""
        if any(a.thing.turns for a in self.seen):
            return
        starts = [-np.inf, *(a.span.start for a in self.seen), np.inf]
        for i, (a, b) in enumerate(itertools.pairwise(self.seen), start=1):
            if all(starts[k + 1] - starts[k] > self.gap for k in (i - 1, i, i + 1)):
                yield a, b

    def _longest(self) -> Iterator[tuple[dict[str, str], tuple[Span, ...], str]]:
        yield from self._by_length(-1, "longest")

    def _shortest(self) -> Iterator[tuple[dict[str, str], tuple[Span, ...], str]]:
        yield from self._by_length(0, "for the shortest time")

    def _by_length(self, place: int, word: str) -> Iterator[tuple[dict[str, str], tuple[Span, ...], str]]:
        ranked = sorted(self.seen, key=lambda a: a.span.length)
        if len(ranked) < 2 or any(a.thing.turns for a in ranked):
            return
        one, other = ranked[place], ranked[1 if place == 0 else -2]
        if abs(one.span.length - other.span.length) > 2 * self.gap:
            yield {}, (one.span,), f"{article(one.noun)} stays {word}"

    def _mover(self) -> Iterator[tuple[dict[str, str], tuple[Span, ...], str]]:
        motions = Counter(a.thing.track.motion for a in self.seen)
        for a in self.seen:
            motion = a.thing.track.motion
            if len(self.seen) > 1 and motion in _MOVES and motions[motion] == 1 and a.thing.turns is None:
                yield {"moves": _MOVES[motion]}, (a.span,), f"{article(a.noun)} {_MOVES[motion]}"

    def _changed(self) -> Iterator[tuple[dict[str, str], tuple[Span, ...], str]]:
        for a in self.seen:
            if a.thing.turns is not None and a.colour == a.thing.turns[1]:
                yield {}, (a.span,), f"the {a.shape} turns {a.colour}"

    def _hit(self) -> Iterator[tuple[dict[str, str], tuple[Span, ...], str]]:
        if self.scene.collision is not None:
            _, *pair = self.scene.collision
            by_thing = {id(a.thing): a for a in self.seen}
            for one, other in (pair, pair[::-1]):
                a, b = by_thing.get(id(one)), by_thing.get(id(other))
                if a is not None and b is not None:
                    yield {"the": f"the {a.noun}"}, (b.span,), f"the {a.noun} hits {article(b.noun)}"

    def _together(self) -> Iterator[tuple[dict[str, str], tuple[Span, ...], str]]:
        for a, b in itertools.combinations(self._steady(), 2):
            start, end = max(a.span.start, b.span.start), min(a.span.end, b.span.end)
            if end - start > self.gap and self.scene.duration - (end - start) > self.gap:
                span, words = Span(start, end), {"the": f"the {a.noun}", "the2": f"the {b.noun}"}
                yield words, (span,), f"{article(a.noun)} and {article(b.noun)}"

    def _after_gone(self) -> Iterator[tuple[dict[str, str], tuple[Span, ...], str]]:
        for a, b in itertools.permutations(self._steady(), 2):
            if a.span.start < b.span.end - self.gap and a.span.end > b.span.end + self.gap:
                span, words = Span(b.span.end, a.span.end), {"the": f"the {a.noun}", "the2": f"the {b.noun}"}
                yield words, (span,), f"then the {b.noun} is gone"

    def _alone(self) -> Iterator[tuple[dict[str, str], tuple[Span, ...], str]]:
        edges = sorted({0.0, self.scene.duration, *(t for a in self.seen for t in (a.span.start, a.span.end))})
        found: list[tuple[Span, Appearance]] = []
        for start, end in itertools.pairwise(edges):
            there = [a for a in self.seen if a.span.start <= start and a.span.end >= end]
            if len(there) == 1:
                found.append((Span(start, end), there[0]))
        if len(found) == 1 and self.gap < found[0][0].length < self.scene.duration - self.gap:
            yield {}, (found[0][0],), f"only {article(found[0][1].noun)}"

    def _beep_next(self) -> Iterator[tuple[dict[str, str], tuple[Span, ...], str]]:
        if not self.sound:
            return
        beeps = sorted(beep.span for beep in self.scene.beeps)
        for a in self._steady():
            later = [beep for beep in beeps if beep.start > a.span.start + self.gap]
            near = any(abs(beep.start - a.span.start) <= self.gap for beep in beeps)
            if later and not near and a.span.start > 0:
                yield {"the": f"the {a.noun}"}, (later[0],), "the beep"

    def _steady(self) -> list[Appearance]:
        return [a for a in self.seen if a.thing.turns is None]
