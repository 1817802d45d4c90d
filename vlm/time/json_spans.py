"""Spans in JSON that a model wrote, alone, in a code fence or in the middle of prose."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

_START = {"start", "starttime", "startsec", "startseconds", "starttimestamp", "begin", "from", "tstart"}
_END = {"end", "endtime", "endsec", "endseconds", "endtimestamp", "stop", "to", "tend"}
_TIME = {
    "time",
    "times",
    "timestamp",
    "timestamps",
    "timespan",
    "span",
    "spans",
    "segment",
    "segments",
    "interval",
    "intervals",
}
_TIME |= {"window", "windows", "range", "ranges", "moment", "moments", "at", "when", "event", "events"}
_MAX_TRIES = 32
_MAX_DEPTH = 6

Pair = tuple[float, float]


def json_spans(text: str, read_time: Callable[[str], float | None]) -> list[Pair]:
    """(start, end) in seconds of every span in the first JSON value of ``text`` that holds any; empty if there is none.

    Understood: ``[[a, b], ...]``, ``{"start": a, "end": b}`` under common names, ``{"timestamp": [a, b]}``, and lists
    of those.

    Args:
        text: Any text.
        read_time: Seconds of a string such as ``"1:05"``, or None.
    """
    decoder = json.JSONDecoder()
    for opening in list(re.finditer(r"[\[{]", text))[:_MAX_TRIES]:
        try:
            value, _ = decoder.raw_decode(text, opening.start())
        except (ValueError, RecursionError):
            continue
        pairs = _spans_of(value, read_time, in_time=True, depth=0)
        if pairs:
            return pairs
    return []


def _spans_of(value: Any, read_time: Callable[[str], float | None], *, in_time: bool, depth: int) -> list[Pair]:
    if depth > _MAX_DEPTH:
        return []
    if isinstance(value, dict):
        return _spans_of_dict(value, read_time, depth)
    if not isinstance(value, list):
        return []
    times = [_seconds(v, read_time) for v in value]
    if in_time and len(value) == 2 and times[0] is not None and times[1] is not None:
        return [(times[0], times[1])]
    return [pair for v in value for pair in _spans_of(v, read_time, in_time=in_time, depth=depth + 1)]


def _spans_of_dict(value: dict[str, Any], read_time: Callable[[str], float | None], depth: int) -> list[Pair]:
    names = {re.sub(r"[^a-z]", "", str(k).lower()): v for k, v in value.items()}
    start = next((t for k in names if k in _START and (t := _seconds(names[k], read_time)) is not None), None)
    end = next((t for k in names if k in _END and (t := _seconds(names[k], read_time)) is not None), None)
    if start is not None:
        return [(start, start if end is None else end)]
    pairs: list[Pair] = []
    for name, inner in names.items():
        instant = _seconds(inner, read_time) if name in _TIME else None
        if instant is not None:
            pairs.append((instant, instant))
        else:
            pairs += _spans_of(inner, read_time, in_time=name in _TIME, depth=depth + 1)
    return pairs


def _seconds(value: Any, read_time: Callable[[str], float | None]) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return read_time(value[:64])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) else None
