"""Questions in ordinary words about a clip of pictures, with exact answers read off its description.

Each kind has phrasings for training and others that only held-out conversations use. Times are marks, ``{t:3.0}`` (seconds).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_recipes.sample import mark
from data_recipes.synth.clips import PLACES, Clip, Item, Shot
from data_recipes.synth.pictures import Name

NUMBERS = ("no", "one", "two", "three")

# kind -> (phrasings for training, phrasings for held-out conversations only)
PHRASINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "list": (
        (
            "What is in the video?",
            "What do you see?",
            "What things appear in the video?",
            "What is shown?",
            "What can you see in the video?",
            "List what appears, in order.",
            "What is this video about?",
        ),
        ("What is in this video?", "Which things can you see?"),
    ),
    "describe": (
        (
            "Describe the video with times.",
            "Describe everything that happens and when.",
            "Tell me what happens and when.",
            "What happens in the video, and when?",
        ),
        ("Give a description of the video with times.",),
    ),
    "presence": (
        (
            "Is there {a}?",
            "Is there {a} in the video?",
            "Can you see {a}?",
            "Do you see {a} in the video?",
            "Does {a} appear?",
            "Is {a} shown?",
        ),
        ("Is {a} in the video?", "Does the video show {a}?"),
    ),
    "colour": (
        ("What colour is {the}?", "What color is {the}?", "Which colour is {the}?", "What is the color of {the}?"),
        ("What is the colour of {the}?",),
    ),
    "where": (
        ("Where is {the}?", "Where in the picture is {the}?", "On which side is {the}?"),
        ("Where can you see {the}?",),
    ),
    "place": (
        ("What is {place} at {t}?", "At {t}, what is {place}?"),
        ("What do you see {place} at {t}?",),
    ),
    "count": (
        ("How many {plural} are there?", "How many {plural} can you see?", "Count the {plural}.", "How many {plural}?"),
        ("How many {plural} are shown?",),
    ),
    "first": (
        ("What comes first?", "What appears first?", "What is the first thing in the video?"),
        ("What is shown first?",),
    ),
    "last": (
        ("What comes last?", "What appears last?", "What is the last thing in the video?"),
        ("What is shown last?",),
    ),
    "after": (
        ("What comes after {the}?", "What comes right after {the}?", "What is shown after {the}?"),
        ("What follows {the}?",),
    ),
    "order": (
        (
            "Which comes first, {the} or {the2}?",
            "What appears first, {the} or {the2}?",
            "Which is earlier, {the} or {the2}?",
        ),
        ("Which is shown first, {the} or {the2}?",),
    ),
    "when": (
        (
            "When does {the} appear?",
            "When is {the} shown?",
            "When can you see {the}?",
            "From when to when is {the} visible?",
            "At what time is there {a}?",
        ),
        ("When do you see {the}?", "When is {the} in the video?"),
    ),
    "at": (
        ("What is shown at {t}?", "What do you see at {t}?", "What is in the video at {t}?"),
        ("What can you see at {t}?",),
    ),
    "said": (
        ("What is said?", "What is said in the video?", "What does the voice say?", "What do you hear?"),
        ("What words are spoken?",),
    ),
}
KINDS = tuple(PHRASINGS)
# How often each kind is asked, in relation to the others.
_WEIGHTS = {"list": 2.0, "describe": 1.5, "presence": 2.5, "when": 2.5, "count": 1.5, "at": 1.5, "said": 2.0}


@dataclass(frozen=True)
class Turn:
    """One question with its answer.

    Attributes:
        kind: Key of `PHRASINGS`.
        question, answer: Text; times as ``{t:seconds}``.
        spans: True (start, end) seconds of what is asked about, for kinds that have times.
        truth: The answer as a word or a list of words, for evaluators.
        choices: The two or more answers that could have been right, where the question gives them.
    """

    kind: str
    question: str
    answer: str
    spans: tuple[tuple[float, float], ...] = ()
    truth: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Copies of one thing in one shot."""

    name: Name
    items: tuple[Item, ...]
    shot: Shot
    edges: tuple[float, float]

    @property
    def words(self) -> str:
        """``a frog``, ``two frogs``, ``the moon``, ``grapes``."""
        if len(self.items) == 1:
            return self.name.phrase
        return f"{NUMBERS[len(self.items)]} {self.name.plural}"

    @property
    def the(self) -> str:
        """With the definite article, as a question says it."""
        return self.name.noun if self.name.noun[:1].isupper() and not self.name.article else f"the {self.name.noun}"


@dataclass
class Asker:
    """Asks about one clip.

    Attributes:
        clip: What the video shows.
        names: Things that could be asked about and are not in the clip.
        edges: Start and end in seconds of each shot as the model can see them; the true ones by default.
        heldout: Use the phrasings that training never sees.
    """

    clip: Clip
    names: Sequence[Name]
    edges: list[tuple[float, float]] | None = None
    heldout: bool = False
    groups: list[Group] = field(init=False)

    def __post_init__(self) -> None:
        edges = self.edges or [(s.start, s.end) for s in self.clip.shots]
        self.groups = [g for shot, span in zip(self.clip.shots, edges, strict=True) for g in _groups(shot, span)]

    def turns(self, rng: np.random.Generator, *, count: int, kinds: tuple[str, ...] | None = None) -> list[Turn]:
        """Up to ``count`` different questions in random order; kinds that do not apply to the clip are left out."""
        allowed = [k for k in (kinds or KINDS) if k in _MAKERS]
        weights = np.array([_WEIGHTS.get(k, 1.0) for k in allowed])
        turns: dict[str, Turn] = {}
        for _ in range(8 * count):
            kind = allowed[int(rng.choice(len(allowed), p=weights / weights.sum()))]
            turn = self.ask(kind, rng)
            if turn is None or turn.question in turns:
                continue
            if turn.kind != "presence" and turn.answer in {t.answer for t in turns.values()}:
                continue
            turns[turn.question] = turn
            if len(turns) == count:
                break
        return list(turns.values())

    def ask(self, kind: str, rng: np.random.Generator) -> Turn | None:
        """One question of this kind, or None when the clip gives no occasion for it."""
        return _MAKERS[kind](self, rng)

    def phrase(self, kind: str, rng: np.random.Generator, **slots: str) -> str:
        """A phrasing of the kind with its slots filled."""
        options = PHRASINGS[kind][int(self.heldout)]
        return options[int(rng.integers(len(options)))].format(**slots)

    def unique(self) -> list[Group]:
        """Groups whose noun occurs in one shot only: "the frog" is then clear."""
        nouns = [g.name.noun for g in self.groups]
        return [g for g in self.groups if nouns.count(g.name.noun) == 1]

    def alone(self) -> list[Group]:
        """Of those, single things."""
        return [g for g in self.unique() if len(g.items) == 1]


def _groups(shot: Shot, edges: tuple[float, float]) -> list[Group]:
    nouns = list(dict.fromkeys(i.name.noun for i in shot.items))
    members = [tuple(i for i in shot.items if i.name.noun == noun) for noun in nouns]
    return [Group(items[0].name, items, shot, edges) for items in members]


def _pick(rng: np.random.Generator, options: Sequence[Group]) -> Group | None:
    return options[int(rng.integers(len(options)))] if options else None


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def join_words(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def where(items: tuple[Item, ...]) -> str:
    """``on the left``, ``in the middle``."""
    place = items[0].place
    return "in the middle" if place == "middle" else f"on the {place}"


def _list(asker: Asker, rng: np.random.Generator) -> Turn | None:
    words = list(dict.fromkeys(g.words for g in asker.groups))
    if not words:
        return None
    return Turn("list", asker.phrase("list", rng), _sentence(join_words(words)), truth="|".join(words))


def _describe(asker: Asker, rng: np.random.Generator) -> Turn | None:
    told: list[tuple[str, tuple[float, float], tuple[float, float]]] = []  # words, when it seems to be, when it is
    for edges in dict.fromkeys(g.edges for g in asker.groups):
        groups = [g for g in asker.groups if g.edges == edges]
        words, shot = join_words([g.words for g in groups]), groups[0].shot
        if told and told[-1][0] == words and told[-1][1][1] == edges[0]:  # the same again is one event
            _, seen, true = told.pop()
            told.append((words, (seen[0], edges[1]), (true[0], shot.end)))
        else:
            told.append((words, edges, (shot.start, shot.end)))
    text = " ".join(f"From {mark(seen[0])} to {mark(seen[1])}: {words}." for words, seen, _ in told)
    return Turn("describe", asker.phrase("describe", rng), text, tuple(true for *_, true in told)) if told else None


def _presence(asker: Asker, rng: np.random.Generator) -> Turn | None:
    """Yes or no by a coin of its own each time: in turn, they could be told from the questions before."""
    yes = rng.random() < 0.5
    shown = [g.name for g in asker.groups]
    options = shown if yes else list(asker.names)
    if not options:
        return None
    question = asker.phrase("presence", rng, a=options[int(rng.integers(len(options)))].phrase)
    truth = "yes" if yes else "no"
    return Turn("presence", question, _sentence(truth), truth=truth, choices=("yes", "no"))


def _colour(asker: Asker, rng: np.random.Generator) -> Turn | None:
    group = _pick(rng, [g for g in asker.alone() if g.items[0].colour])
    if group is None:
        return None
    colour = str(group.items[0].colour)
    return Turn("colour", asker.phrase("colour", rng, the=group.the), _sentence(colour), truth=colour)


def _where_is(asker: Asker, rng: np.random.Generator) -> Turn | None:
    group = _pick(rng, asker.alone())
    if group is None:
        return None
    truth = group.items[0].place
    question = asker.phrase("where", rng, the=group.the)
    return Turn("where", question, _sentence(where(group.items)), truth=truth, choices=PLACES)


def _place(asker: Asker, rng: np.random.Generator) -> Turn | None:
    if (group := _pick(rng, [g for g in asker.groups if len(g.items) == 1 and len(g.shot.items) > 1])) is None:
        return None
    question = asker.phrase("place", rng, place=where(group.items), t=_moment(group, rng))
    return Turn("place", question, _sentence(group.words), truth=group.name.noun)


def _moment(group: Group, rng: np.random.Generator) -> str:
    start, end = group.edges
    return mark(start + (end - start) * float(rng.uniform(0.2, 0.8)))


def _count(asker: Asker, rng: np.random.Generator) -> Turn | None:
    able = [g for g in asker.unique() if g.name.countable]
    number = int(rng.integers(1, 4))  # so that one, two and three are about equally common
    group = _pick(rng, [g for g in able if len(g.items) == number])
    if group is None:
        return None
    truth = NUMBERS[len(group.items)]
    question = asker.phrase("count", rng, plural=group.name.plural)
    return Turn("count", question, _sentence(truth), truth=truth, choices=NUMBERS[1:])


def _edge(kind: str, index: int) -> Callable[[Asker, np.random.Generator], Turn | None]:
    def make(asker: Asker, rng: np.random.Generator) -> Turn | None:
        shown = [[g for g in asker.groups if g.shot is s] for s in asker.clip.shots]
        if len(shown) < 2 or not shown[index]:
            return None
        words = join_words([g.words for g in shown[index]])
        return Turn(kind, asker.phrase(kind, rng), _sentence(words), truth=words)

    return make


def _after(asker: Asker, rng: np.random.Generator) -> Turn | None:
    shots = asker.clip.shots
    group = _pick(rng, [g for g in asker.unique() if g.shot is not shots[-1]])
    if group is None:
        return None
    following = shots[shots.index(group.shot) + 1]
    words = join_words([g.words for g in asker.groups if g.shot is following] or ["nothing"])
    return Turn("after", asker.phrase("after", rng, the=definite(group)), _sentence(words), truth=words)


def definite(group: Group) -> str:
    """``the frog``, ``the two frogs``."""
    return group.the if len(group.items) == 1 else f"the {group.words}"


def _order(asker: Asker, rng: np.random.Generator) -> Turn | None:
    options = asker.unique()
    if len(options) < 2:
        return None
    first, second = (options[int(i)] for i in rng.choice(len(options), 2, replace=False))
    if first.shot is second.shot:
        return None
    truth = min(first, second, key=lambda g: g.shot.start)
    question = asker.phrase("order", rng, the=definite(first), the2=definite(second))
    choices = (first.name.noun, second.name.noun)
    return Turn("order", question, _sentence(definite(truth)), truth=truth.name.noun, choices=choices)


def _when(asker: Asker, rng: np.random.Generator) -> Turn | None:
    group = _pick(rng, asker.unique())
    if group is None:
        return None
    question = asker.phrase("when", rng, the=definite(group), a=group.words)
    if len(group.items) > 1 or not group.name.article:
        question = _agree(question)
    answer = f"From {mark(group.edges[0])} to {mark(group.edges[1])}."
    return Turn("when", question, answer, ((group.shot.start, group.shot.end),), truth=group.name.noun)


def _agree(question: str) -> str:
    """A plural subject takes a plural verb."""
    for single, plural in (("does the", "do the"), ("is the", "are the"), ("is there", "are there")):
        question = question.replace(single, plural)
    return question


def _at(asker: Asker, rng: np.random.Generator) -> Turn | None:
    group = _pick(rng, asker.groups)
    if group is None:
        return None
    words = join_words([g.words for g in asker.groups if g.shot is group.shot])
    return Turn("at", asker.phrase("at", rng, t=_moment(group, rng)), _sentence(words), truth=words)


def _said(asker: Asker, rng: np.random.Generator) -> Turn | None:
    heard = [s.sound for s in asker.clip.shots if s.sound is not None and s.sound.text]
    if not heard:
        return None
    text = " ".join(str(s.text) for s in heard)
    spans = tuple((s.start, s.start + s.seconds) for s in heard)
    return Turn("said", asker.phrase("said", rng), text, spans, truth=text)


_MAKERS: dict[str, Callable[[Asker, np.random.Generator], Turn | None]] = {
    "list": _list,
    "describe": _describe,
    "presence": _presence,
    "colour": _colour,
    "where": _where_is,
    "place": _place,
    "count": _count,
    "first": _edge("first", 0),
    "last": _edge("last", -1),
    "after": _after,
    "order": _order,
    "when": _when,
    "at": _at,
    "said": _said,
}
