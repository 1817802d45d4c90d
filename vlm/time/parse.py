"""Times out of a model's words.

`parse_times` is tolerant: ``<t12>``, ``<12.3>``, ``12.3 s``, ``1 min 5 s``, ``1:05``, ``01:02:03.5``, ``from a to b``,
``between a and b``, ``a - b``, JSON, and several of them in one answer. It says how it read them, and it never raises
on text.
`parse_lita` is the strict rule of LITA's evaluator (2403.19046), for numbers that can be compared with the paper's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from vlm.time.json_spans import json_spans
from vlm.time.span import Span


@dataclass(frozen=True)
class ParseResult:
    """What was read from an answer.

    Attributes:
        spans: In the order of the text, inside ``[offset, offset + duration]``; an instant has ``start == end``.
        how: How times were written: ``tokens`` (the codec's own), ``angle`` (``<12.3>``), ``seconds``, ``clock``,
            ``range`` (bare numbers in a range), ``json``; joined by ``+`` when mixed; ``absent`` when the text says
            that it does not happen; ``none``.
        fallback: True if no time could be read and the text does not say "absent" either. `parse_lita` then answers
            the whole clip.
        text: The answer with time tokens written as seconds ("12.3 s"); with an offset, the times in words as well.
        places: Where in the answer each span is said, ``(begin, end)``; empty for JSON.
    """

    spans: list[Span]
    how: str
    fallback: bool
    text: str
    places: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Mark:
    """How a codec writes one time.

    Attributes:
        pattern: Regular expression without named groups.
        read: Seconds of a matched text; NaN if they cannot be known.
    """

    pattern: str
    read: Callable[[str], float]


@dataclass(frozen=True)
class _Atom:
    """One time, or a bare number that may become one: ``text[begin:end]`` says ``value`` (s)."""

    begin: int
    end: int
    kind: str
    value: float
    unit: float = 1.0

    @property
    def is_mark(self) -> bool:
        return self.kind in ("tokens", "angle")


_NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_LOOSE = r"-?(?:[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})"
_SECONDS = r"(?:seconds?|secs?|s)\b(?!')"
_MINUS = r"(?:(?<![0-9s>\])]\s)(?<![\w>\])])(?P<minus>-))?"
_NOT_IN_WORD = r"(?<![\w.])"
_ATOMS = rf"""
    (?P<mark>%s)(?:\s*{_SECONDS})?
  | <\s*(?P<angle>{_LOOSE})\s*(?:{_SECONDS})?\s*>
  | <?{_NOT_IN_WORD}(?<!:)(?:(?P<hours>[0-9]{{1,3}}):)?(?P<minutes>[0-9]{{1,3}})
        :(?P<rest>[0-5][0-9](?:\.[0-9]{{1,6}}|,[0-9]{{3}})?)
        (?![\w:]|\s*[ap]\.?m\b)>?
  | {_NOT_IN_WORD}(?P<hour>{_NUMBER})\s*h(?:ours?|rs?)?(?![a-z])
        (?:,?\s*(?:and\s+)?(?P<hour_min>{_NUMBER})\s*m(?:in(?:ute)?s?)?(?![a-z]))?
        (?:,?\s*(?:and\s+)?(?P<hour_sec>{_NUMBER})\s*{_SECONDS})?
  | {_NOT_IN_WORD}(?P<long>{_NUMBER})\s*(?:min(?:ute)?s?\b|m(?=\s*[0-9]))
        (?:,?\s*(?:and\s+)?(?P<extra>{_NUMBER})\s*{_SECONDS})?
  | {_NOT_IN_WORD}(?![0-9]{{4}}s){_MINUS}(?P<seconds>{_NUMBER}|[0-9]{{1,9}},[0-9]{{1,2}})\s*{_SECONDS}
  | {_NOT_IN_WORD}(?P<bare>{_NUMBER})(?![\w%%:]|\.[0-9])
"""
_ABOUT = r"(?:about|around|approximately|roughly)"
_JOIN = re.compile(
    rf"""\s*[,;]?\s*(?:
        to | until | till | through | thru | up\ to | -{{1,2}}>? | [–—~→] | \.\.+
      | (?:and\s+)?(?:(?:it|then|he|she|they)\s+)*
        (?:ends?|ending|end[_ ]time|stops?|stopping|finish(?:es)?|disappears?|leaves?|lasts\ until)
        (?:\s+(?:at|by|around|about|near))?\s*[:=]?
    )\s*(?:{_ABOUT}\s+)?""",
    re.IGNORECASE | re.VERBOSE,
)
_AND = re.compile(rf"\s*and\s*(?:{_ABOUT}\s+)?", re.IGNORECASE)
_BETWEEN = re.compile(rf"\bbetween\s+(?:{_ABOUT}\s+)?$", re.IGNORECASE)
_FROM = re.compile(rf"\b(?:from|between|during)\s+(?:{_ABOUT}\s+)?$", re.IGNORECASE)
_LENGTH = re.compile(rf"\b(?:for|lasts?|lasting|every|within|takes?)\s+(?:{_ABOUT}\s+)?$", re.IGNORECASE)
_LONG = re.compile(r"[\s-]*long\b", re.IGNORECASE)
_AFTER_RANGE = re.compile(
    r"""\s*(?:$|[.,;:!?)\]}"']|(?:in|when|while|as|and|then|during|on|at|for|the|an?|of|is|it)\b)""", re.IGNORECASE
)
_ABSENT = re.compile(
    r"""\b(?:never|absent|nowhere|n/a|none|not\s+(?:present|shown|visible|seen|found|there|in\s+the\s+(?:video|clip))|no\s+such
    |(?:does|do|did|is|was|are|were)(?:n['’]t|\s+not)\s+(?:\w+\s+){0,2}?(?:appear|happen|occur|present|shown|visible|seen|exist|there)
    |cannot\s+be\s+(?:found|seen)|there\s+(?:is|are|was|were)\s+no)\b|^\s*no\b""",
    re.IGNORECASE | re.VERBOSE,
)
LITA_TIME = re.compile(r"<([0-9]*\.[0-9]+|[0-9]+\.?)>")
"""A time as LITA's evaluator reads it."""


def parse_times(
    text: str, duration: float, *, mark: Mark | None = None, decimals: int = 1, offset: float = 0.0
) -> ParseResult:
    """Read every time that ``text`` mentions.

    Args:
        text: Anything a model may have said.
        duration: Length of the video in seconds; spans are clamped to it. 0 or less means unknown: then nothing is
            clamped from above.
        mark: The codec's own way to write a time.
        decimals: Digits after the point when a time token is written as seconds in `ParseResult.text`.
        offset: Seconds of the file at which the video that ``text`` is about begins; moves the spans and the times in
            `ParseResult.text`.
    """
    limit = duration if duration > 0 else math.inf
    atoms = _read_atoms(text, mark)

    def one_time(word: str) -> float | None:
        found = [a for a in _read_atoms(word, mark) if a.kind != "bare"]
        return found[0].value if len(found) == 1 else None

    structured = json_spans(text, one_time)
    if structured:
        pairs, how = structured, "json"
        said = {t for pair in pairs for t in pair} if offset else set()
        used: list[tuple[_Atom, ...]] = [(a,) for a in atoms if a.is_mark or a.value in said]
    else:
        used = _pair(text, atoms)
        pairs = [(u[0].value, u[-1].value) for u in used]
        how = "+".join(dict.fromkeys(_kind(u) for u in used))
    spans = [Span.of(*(float(min(max(t, 0.0), limit)) + offset for t in pair)) for pair in pairs]
    if not spans:
        absent = bool(_ABSENT.search(text))
        return ParseResult([], "absent" if absent else "none", not absent, text)
    places = () if structured else tuple((group[0].begin, group[-1].end) for group in used)
    return ParseResult(spans, how, False, _render(text, used, limit, decimals, offset), places)


def parse_lita(text: str, duration: float) -> ParseResult:
    """LITA's evaluation rule (released code): the first two ``<12.3>`` of a text, clamped and in order.

    With fewer than two, the answer counts as the whole clip ``[0, duration]`` and ``fallback`` is True. Time tokens
    must have been written as seconds before (`RelativeCodec.angle_text`). ``ParseResult.text`` is what remains.
    """
    times = [min(max(float(m), 0.0), duration) for m in LITA_TIME.findall(text)[:2]]
    rest = " ".join(LITA_TIME.sub(" ", text).split())
    if len(times) < 2:
        return ParseResult([Span(0.0, duration)], "whole", True, rest)
    return ParseResult([Span.of(*times)], "angle", False, rest)


@lru_cache(maxsize=64)
def _atom_pattern(mark: str) -> re.Pattern[str]:
    return re.compile(_ATOMS % mark, re.IGNORECASE | re.VERBOSE)


def _read_atoms(text: str, mark: Mark | None) -> list[_Atom]:
    pattern = _atom_pattern(mark.pattern if mark else r"(?!)")
    atoms = (_atom(match, mark) for match in pattern.finditer(text))
    return [a for a in atoms if math.isfinite(a.value)]


def _atom(match: re.Match[str], mark: Mark | None) -> _Atom:
    begin, end, found = match.start(), match.end(), match.groupdict()
    if mark and found["mark"] is not None:
        return _Atom(begin, end, "tokens", mark.read(found["mark"]))
    if found["angle"] is not None:
        return _Atom(begin, end, "angle", float(found["angle"]))
    if found["rest"] is not None:
        seconds = 3600 * int(found["hours"] or 0) + 60 * int(found["minutes"]) + float(found["rest"].replace(",", "."))
        return _Atom(begin, end, "angle" if match[0][0] == "<" and match[0][-1] == ">" else "clock", seconds)
    if found["hour"] is not None:
        hours, minutes, rest = (float(found[key] or 0) for key in ("hour", "hour_min", "hour_sec"))
        whole = found["hour_min"] is None and found["hour_sec"] is None
        return _Atom(begin, end, "seconds", 3600 * hours + 60 * minutes + rest, unit=3600.0 if whole else 1.0)
    if found["long"] is not None:
        seconds = 60 * float(found["long"]) + float(found["extra"] or 0)
        return _Atom(begin, end, "seconds", seconds, unit=1.0 if found["extra"] else 60.0)
    if found["seconds"] is not None:
        seconds = float(found["seconds"].replace(",", "."))  # "12,5 s" as well
        return _Atom(begin, end, "seconds", seconds * (-1 if found["minus"] else 1))
    return _Atom(begin, end, "bare", float(found["bare"]))


def _pair(text: str, atoms: list[_Atom]) -> list[tuple[_Atom, ...]]:
    """Group atoms into ranges ``(a, b)`` and instants ``(a,)``; numbers that are no times are left out."""
    groups: list[tuple[_Atom, ...]] = []
    everything = (len(text) - len(text.lstrip()), len(text.rstrip()))
    i = 0
    while i < len(atoms):
        a = atoms[i]
        if i + 1 < len(atoms) and _is_range(text, a, atoms[i + 1], everything):
            b = atoms[i + 1]
            first = _Atom(a.begin, a.end, a.kind, a.value * b.unit) if a.kind == "bare" else a
            groups.append((first, b))
            i += 2
            continue
        if _is_instant(text, a, everything):
            groups.append((a,))
        i += 1
    return groups


def _is_instant(text: str, a: _Atom, everything: tuple[int, int]) -> bool:
    if a.kind == "bare":
        return (a.begin, a.end) == everything and "." in text
    if a.kind != "seconds":
        return True
    return not (_LENGTH.search(text[max(0, a.begin - 32) : a.begin]) or _LONG.match(text[a.end : a.end + 32]))


def _is_range(text: str, a: _Atom, b: _Atom, everything: tuple[int, int]) -> bool:
    gap, before, after = text[a.end : b.begin], text[max(0, a.begin - 32) : a.begin], text[b.end : b.end + 32]
    whole = (a.begin, b.end) == everything
    bracket = before.rstrip()[-1:] in ("[", "(") and after.lstrip()[:1] in ("]", ")")
    listed = gap.strip() == "," and (bracket or whole)
    joined = bool(_JOIN.fullmatch(gap)) or listed or bool(_AND.fullmatch(gap) and _BETWEEN.search(before))
    if a.kind != "bare" and b.kind != "bare":
        return joined or (a.is_mark and b.is_mark and not gap.strip())
    if a.kind == "bare" and b.kind == "bare":
        decimal = all("." in text[x.begin : x.end] for x in (a, b))
        return joined and bool(whole or ((bracket or decimal or _FROM.search(before)) and _AFTER_RANGE.match(after)))
    return joined and (a.kind == "bare" or bool(_AFTER_RANGE.match(after)))


def _kind(group: tuple[_Atom, ...]) -> str:
    kinds = [a.kind for a in group if a.kind != "bare"]
    return kinds[0] if kinds else "range"


def _render(text: str, groups: list[tuple[_Atom, ...]], limit: float, decimals: int, offset: float) -> str:
    """The text with marks written as seconds, and with an offset every time; two marks side by side become "a to b"."""
    out, done = [], 0
    for group in groups:
        for place, atom in enumerate(group):
            if not (atom.is_mark or offset):
                continue
            between = text[done : atom.begin]
            if place == 1 and not between.strip():
                between = " to "
            seconds = min(max(atom.value, 0.0), limit) + offset
            out += [between, f"{seconds:.{decimals}f}" + (" s" if atom.kind != "bare" else "")]
            done = atom.end
    return "".join(out) + text[done:]
