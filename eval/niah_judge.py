"""Whether a model's own words give the right answer: names, letters, lists in order, numbers, times, heard sentences."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from eval.needles import LETTERS
from vlm.time import Span

HEARD_SHARE = 0.8
"""Share of a sentence's words that must be written down, in order, for it to count as heard (ours)."""

TIME_SHARE, TIME_SECONDS = 0.02, 1.0
"""A time is right within this share of the video's length, or this many seconds if that is more (ours)."""

_SAID = r"\W*(?i:the\s+)?(?i:answer|option|letter)(?i:\s+is)?\W*"
_LETTER = re.compile(rf"{_SAID}([A-Z])\b|(?:{_SAID}|\W*)([A-Za-z])\s*(?:$|[^\w\s'])")
"""A letter that is said to be the answer, or one on its own or before a sign: group 1 or 2."""

_ZERO = ("none", "zero", "no", "nothing")


def is_right(reply: str, answer: str | Sequence[str], wrong: Sequence[str] = ()) -> bool:
    """Whether free words give the answer: its letter, or its words and none of the ``wrong`` answers.

    Args:
        reply: What the model said.
        answer: One answer, or several that mean the same.
        wrong: Answers to other questions; one that is also right does not count as wrong.
    """
    right = (answer,) if isinstance(answer, str) else tuple(answer)
    if right[0] in LETTERS and len(right[0]) == 1:
        found = _LETTER.match(reply)
        return found is not None and (found[1] or found[2]).upper() == right[0]
    said, meant = plain(reply), {plain(r) for r in right}
    return any(r in said for r in meant) and not any(w in said for w in map(plain, wrong) if w not in meant)


def names_all(reply: str, items: Sequence[Sequence[str]], wrong: Sequence[str] = (), *, ordered: bool = False) -> bool:
    """Whether all items are named and nothing ``wrong`` is; with ``ordered``, first mentions must come in this order.

    Args:
        reply: What the model said.
        items: For each item the names that mean it.
        wrong: Names of what is not there.
        ordered: Compare the order, too.
    """
    said = plain(reply)
    places = [min((p for n in names if (p := said.find(plain(n))) >= 0), default=-1) for names in items]
    if min(places) < 0 or any(plain(w) in said for w in wrong):
        return False
    return not ordered or all(a < b for a, b in itertools.pairwise(places))


def says_number(reply: str, number: int, numbers: Sequence[str]) -> bool:
    """Whether the reply says this number and no other, as a word or in digits; "no" and "nothing" are 0 if no number is said.

    Where things are listed before they are counted ("a star, a cross: two"), what follows the last colon counts.
    """
    words = plain(reply.rpartition(": ")[2]).split()
    said = {numbers.index(w) for w in words if w in numbers} | {int(w) for w in words if w.isdecimal()}
    if not said and set(words) & set(_ZERO):
        said = {0}
    return said == {number}


def says_time(spans: Sequence[Span], truth: Span, duration: float) -> bool:
    """Whether the first span's middle is the true one's, up to `TIME_SHARE` and `TIME_SECONDS`."""
    return bool(spans) and abs(_middle(spans[0]) - _middle(truth)) <= time_slack(truth, duration)


def time_slack(truth: Span, duration: float) -> float:
    """Seconds by which a time may be off: never less than half of what it is about."""
    return max(TIME_SHARE * duration, TIME_SECONDS, 0.5 * (truth.end - truth.start))


def says_sentence(reply: str, sentence: str) -> bool:
    """Whether `HEARD_SHARE` of the sentence's words are in the reply, in order."""
    said, wanted = plain(reply).split(), plain(sentence).split()
    longest = [0] * (len(said) + 1)  # of common subsequences, row by row
    for word in wanted:
        before = longest
        longest = [0]
        for i, other in enumerate(said):
            longest.append(before[i] + 1 if word == other else max(before[i + 1], longest[i]))
    return longest[-1] >= HEARD_SHARE * len(wanted)


def plain(text: str) -> str:
    """Lower-case words between single spaces, with a space at both ends."""
    words = re.findall(r"[^\W_]+", text.lower())
    return f" {' '.join(words)} "


def _middle(span: Span) -> float:
    return (span.start + span.end) / 2
