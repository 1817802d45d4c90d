"""Questions about when that do not name what they ask about, for clips of pictures: it has to be found out first, by order, length, number,
place, or by what is said meanwhile.

As in LITA's reasoning temporal localisation (2403.19046 §4) an answer says when, and then what. Held out are kinds of question
(`HELD_OUT_KINDS`), phrasings of the others, and the pictures of the held-out splits. (All ours.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from data_recipes.sample import REASON, mark
from data_recipes.synth.clips import Shot
from data_recipes.synth.smol_questions import Asker, Group, Turn, definite, join_words, where

HELD_OUT_KINDS = ("shortest", "before", "after_heard")
"""Kinds of question that training never asks."""

# kind -> (phrasings for training, phrasings for held-out conversations only)
PHRASINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "first": (
        ("When is the first thing shown?", "From when to when is the first thing visible?", "When do you see what comes first?"),
        ("When can you see the first thing?",),
    ),
    "last": (
        ("When is the last thing shown?", "From when to when is the last thing visible?", "When do you see what comes last?"),
        ("When can you see the last thing?",),
    ),
    "next": (
        ("When is what comes right after {the} shown?", "What comes right after {the}, and when?",
         "When do you see the next thing after {the}?"),
        ("When can you see what follows {the}?",),
    ),
    "before": (
        ("When is what comes right before {the} shown?", "What comes right before {the}, and when?"),
        ("When can you see what precedes {the}?",),
    ),
    "between": (
        ("What is shown between {the} and {the2}, and when?", "When is what comes between {the} and {the2} shown?"),
        ("When can you see what is between {the} and {the2}?",),
    ),
    "longest": (
        ("What is shown longest, and when?", "When is the thing shown that stays longest?",
         "When do you see what is there for the longest time?"),
        ("When can you see what stays longest?",),
    ),
    "shortest": (
        ("When is the thing shown that stays for the shortest time?", "What is shown for the shortest time, and when?"),
        ("When can you see what stays for the shortest time?",),
    ),
    "several": (
        ("When are there several of the same?", "When do you see more than one of the same thing?"),
        ("When can you see several of a kind?",),
    ),
    "different": (
        ("When are different things shown together?", "When do you see more than one kind of thing at a time?"),
        ("When can you see different things at once?",),
    ),
    "side": (
        ("When is a thing {place} only?", "When do you see something {place} and nothing else?"),
        ("When can you see a thing {place} and nowhere else?",),
    ),
    "heard": (
        ("What is shown while somebody speaks, and when?", "When do you see what is shown while the voice speaks?"),
        ("When can you see what is there while somebody talks?",),
    ),
    "after_heard": (
        ("What comes after what is shown while somebody speaks, and when?",),
        ("When can you see what comes right after the thing shown while somebody talks?",),
    ),
}  # fmt: skip
_CLEAR = 1.3  # how many times longer a shot must be than another to be called so

_Option = tuple[
    dict[str, str], Shot, str
]  # slots of the question, the shot that is meant, what the answer adds to its things


def reasons(asker: Asker, rng: np.random.Generator, *, most: int, kinds: tuple[str, ...] | None = None) -> list[Turn]:
    """Up to ``most`` questions in random order, at most one of each kind, each with exactly one right answer.

    Args:
        asker: Knows the clip, and whether phrasings are those of training.
        rng: Chooses.
        most: Questions.
        kinds: Keys of `PHRASINGS`; by default all, for training without `HELD_OUT_KINDS`.
    """
    kinds = kinds or tuple(k for k in PHRASINGS if asker.heldout or k not in HELD_OUT_KINDS)
    by_shot = [(s, [g for g in asker.groups if g.shot is s]) for s in asker.clip.shots]
    turns = []
    for kind in kinds:
        if options := list(_MAKERS[kind](asker, by_shot)):
            turns.append(_turn(kind, asker, rng, by_shot, options[int(rng.integers(len(options)))]))
    return [turns[i] for i in rng.permutation(len(turns))[:most]]


_Shots = list[tuple[Shot, list[Group]]]


def _turn(kind: str, asker: Asker, rng: np.random.Generator, shots: _Shots, option: _Option) -> Turn:
    slots, shot, why = option
    options = PHRASINGS[kind][int(asker.heldout)]
    question = options[int(rng.integers(len(options)))].format(**slots)
    groups = next(groups for s, groups in shots if s is shot)
    words, (start, end) = join_words([g.words for g in groups]), groups[0].edges
    answer = f"From {mark(start)} to {mark(end)}: {words}{why}."
    return Turn(REASON + kind, question, answer, ((shot.start, shot.end),), truth=words)


# -- each kind: every way to ask it that has one clear answer ------------------------------------------------------------------


def _edge(index: int, word: str) -> Callable[[Asker, _Shots], Iterator[_Option]]:
    def make(asker: Asker, shots: _Shots) -> Iterator[_Option]:
        if len(shots) > 1 and shots[index][1]:
            yield {}, shots[index][0], f", {word} of all"

    return make


def _beside(step: int, word: str) -> Callable[[Asker, _Shots], Iterator[_Option]]:
    def make(asker: Asker, shots: _Shots) -> Iterator[_Option]:
        for group in asker.unique():
            place = asker.clip.shots.index(group.shot) + step
            if 0 <= place < len(shots) and shots[place][1]:
                yield {"the": definite(group)}, shots[place][0], f", {word} {definite(group)}"

    return make


def _between(asker: Asker, shots: _Shots) -> Iterator[_Option]:
    for (a, _), (shot, groups), (b, _) in zip(shots, shots[1:], shots[2:], strict=False):
        ends = [[g for g in asker.unique() if g.shot is s] for s in (a, b)]
        for one, other in itertools.product(*ends if groups else ((), ())):
            yield (
                {"the": definite(one), "the2": definite(other)},
                shot,
                f", between {definite(one)} and {definite(other)}",
            )


def _by_length(place: int, word: str) -> Callable[[Asker, _Shots], Iterator[_Option]]:
    def make(asker: Asker, shots: _Shots) -> Iterator[_Option]:
        ranked = sorted((s.end - s.start, i) for i, (s, _) in enumerate(shots))
        if len(ranked) < 2 or not all(groups for _, groups in shots):
            return
        (one, i), (other, _) = ranked[place], ranked[1 if place == 0 else -2]
        if max(one, other) >= _CLEAR * min(one, other):
            yield {}, shots[i][0], f", for the {word} time"

    return make


def _only(shots: _Shots, holds: Callable[[list[Group]], bool]) -> Iterator[Shot]:
    """The shot for which something holds, if it is one."""
    found = [shot for shot, groups in shots if groups and holds(groups)]
    if len(found) == 1 and len(shots) > 1:
        yield found[0]


def _several(asker: Asker, shots: _Shots) -> Iterator[_Option]:
    for shot in _only(shots, lambda groups: any(len(g.items) > 1 for g in groups)):
        yield {}, shot, ""


def _different(asker: Asker, shots: _Shots) -> Iterator[_Option]:
    for shot in _only(shots, lambda groups: len(groups) > 1):
        yield {}, shot, ""


def _side(asker: Asker, shots: _Shots) -> Iterator[_Option]:
    for side in ("left", "right"):
        for shot in _only(shots, lambda groups, side=side: all(i.place == side for g in groups for i in g.items)):  # type: ignore[misc]
            place = where(shot.items)
            yield {"place": place}, shot, f", {place}"


def _heard(asker: Asker, shots: _Shots) -> Iterator[_Option]:
    for shot in _only(shots, lambda groups: _speaks(groups[0].shot)):
        yield {}, shot, ", while the voice speaks"


def _after_heard(asker: Asker, shots: _Shots) -> Iterator[_Option]:
    for shot in _only(shots, lambda groups: _speaks(groups[0].shot)):
        place = asker.clip.shots.index(shot) + 1
        if place < len(shots) and shots[place][1]:
            yield {}, shots[place][0], ", after the voice"


def _speaks(shot: Shot) -> bool:
    return shot.sound is not None and bool(shot.sound.text)


_MAKERS: dict[str, Callable[[Asker, _Shots], Iterator[_Option]]] = {
    "first": _edge(0, "first"),
    "last": _edge(-1, "last"),
    "next": _beside(1, "after"),
    "before": _beside(-1, "before"),
    "between": _between,
    "longest": _by_length(-1, "longest"),
    "shortest": _by_length(0, "shortest"),
    "several": _several,
    "different": _different,
    "side": _side,
    "heard": _heard,
    "after_heard": _after_heard,
}
