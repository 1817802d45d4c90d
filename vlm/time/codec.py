"""`TimeCodec`: seconds <-> what the language model reads and says.

- ``relative``: one token per time, a fraction of the clip (LITA, 2403.19046 §3.2). Short, but coarse on long video.
- ``seconds``: plain text such as ``12.3 s`` (the form of Qwen3-VL and TimeLens). No new tokens, the same on any length.
- ``digits``: absolute time in dedicated digit tokens of fixed width (idea of VTG-LLM and TRACE; the names are ours).
- ``two_digit``: hundredths of the clip as two plain digits, ``from 25 to 60`` (VTimeLLM). No new tokens, coarse on long video.
"""

from __future__ import annotations

import math
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from vlm.errors import ConfigError
from vlm.time.parse import Mark, ParseResult, parse_times
from vlm.time.span import Span

LITA_TOKENS = 100
_MARK = re.compile(r"\{t:(\d+(?:\.\d+)?)(?:-(\d+(?:\.\d+)?))?\}")
ABSENT = "not present"
"""What is said instead of a time when there is none."""


class TimeCodec(ABC):
    """Writes times for a language model and reads them back.

    Attributes:
        name: As in `make_codec`.
        ordered: Each of its tokens is a time, and they follow each other.
    """

    name: str
    ordered: bool = False

    @abstractmethod
    def tokens(self) -> list[str]:
        """Vocabulary this codec adds, in order of time or value; empty if it uses plain text."""

    @abstractmethod
    def encode(self, seconds: float, duration: float) -> str:
        """What the model says for a time.

        Args:
            seconds: Clamped to ``[0, duration]``.
            duration: Length of the video in seconds.

        Raises:
            ConfigError: ``seconds`` is not finite, or ``duration`` is not positive, or it cannot be written.
        """

    @abstractmethod
    def decode(self, token: str, duration: float) -> float:
        """Seconds of one encoded time, clamped to ``[0, duration]``.

        Raises:
            ConfigError: ``token`` is not something `encode` writes.
        """

    @abstractmethod
    def step(self, duration: float) -> float:
        """Seconds between two neighbouring times that can be said; the error of `encode` is at most half of it."""

    @abstractmethod
    def _mark(self, duration: float) -> Mark:
        """How this codec's times are found in text."""

    def encode_span(self, span: Span, duration: float) -> str:
        """Start and end, side by side (LITA's ``<ts> <te>``)."""
        return f"{self.encode(span.start, duration)} {self.encode(span.end, duration)}"

    def encode_spans(self, spans: Sequence[Span], duration: float) -> str:
        """Any number of spans; `ABSENT` for none."""
        return ", ".join(self.encode_span(span, duration) for span in spans) or ABSENT

    def write(self, text: str, duration: float) -> str:
        """Neutral marks in ``text``, ``{t:12.3}`` for a time and ``{t:12.3-15.0}`` for a span (seconds), in the codec's words.

        A ``duration`` of 0 means that there is none to refer to: the time itself is taken for it.
        """

        def written(match: re.Match[str]) -> str:
            times = [float(t) for t in match.groups() if t is not None]
            length = duration or max(times) or 1.0
            return self.encode(times[0], length) if len(times) == 1 else self.encode_span(Span.of(*times), length)

        return _MARK.sub(written, text)

    def parse(self, text: str, duration: float, *, offset: float = 0.0) -> ParseResult:
        """Every time in a model's answer, however it is written; see `vlm.time.parse.parse_times`."""
        return parse_times(text, duration, mark=self._mark(duration), offset=offset)


class RelativeCodec(TimeCodec):
    """``<t0>`` ... ``<t{T-1}>``: token index = (T-1) · seconds / duration (LITA §3.2, 0-based as in the released code).

    Rounding: half to even, as ``np.round`` does. The index is clamped to 0..T-1 (LITA's code does not clamp).

    Args:
        num_tokens: T, at least 2; LITA uses 100.
        template: Spelling of a token; ``{t}`` is the index.
    """

    name = "relative"
    ordered = True

    def __init__(self, *, num_tokens: int = LITA_TOKENS, template: str = "<t{t}>") -> None:
        if num_tokens < 2:
            raise ConfigError(f"num_tokens={num_tokens} cannot tell the start of a clip from its end; give at least 2")
        if template.count("{t}") != 1 or template == "{t}":
            raise ConfigError(
                f"template={template!r} must contain {{t}} once, with something around it, for example '<t{{t}}>'"
            )
        self.num_tokens = num_tokens
        self.template = template
        self._pattern = r"[0-9]{1,9}".join(re.escape(part) for part in template.split("{t}"))

    def tokens(self) -> list[str]:
        return [self.template.replace("{t}", str(i)) for i in range(self.num_tokens)]

    def index(self, seconds: float, duration: float) -> int:
        """Index of the token for a time."""
        seconds = _clamped(seconds, duration)
        return min(max(round((self.num_tokens - 1) * seconds / duration), 0), self.num_tokens - 1)

    def encode(self, seconds: float, duration: float) -> str:
        return self.template.replace("{t}", str(self.index(seconds, duration)))

    def decode(self, token: str, duration: float) -> float:
        _check_duration(duration)
        if not re.fullmatch(self._pattern, token):
            raise ConfigError(f"{token!r} is not a time token like {self.template.replace('{t}', '0')!r}")
        return self._seconds(token, duration)

    def step(self, duration: float) -> float:
        return duration / (self.num_tokens - 1)

    def angle_text(self, text: str, duration: float) -> str:
        """Time tokens rewritten as ``<12.34>``: the string that LITA's evaluator sees (two decimals)."""
        return re.sub(self._pattern, lambda m: f"<{round(self._seconds(m[0], duration), 2)}>", text)

    def _seconds(self, token: str, duration: float) -> float:
        before, after = self.template.split("{t}")
        index = int(token[len(before) : len(token) - len(after)])
        return min(index * duration / (self.num_tokens - 1), duration) if duration > 0 else math.nan

    def _mark(self, duration: float) -> Mark:
        return Mark(self._pattern, lambda token: self._seconds(token, duration))


class SecondsCodec(TimeCodec):
    """Plain text, ``12.3 s``. Also reads ``<t12>`` as one of LITA's 100 tokens.

    Args:
        decimals: Digits after the point, 0 to 6. Rounded as Python formats floats: to nearest, exact ties to even.
    """

    name = "seconds"

    def __init__(self, *, decimals: int = 1) -> None:
        _check_range("decimals", decimals, 0, 6)
        self.decimals = decimals

    def tokens(self) -> list[str]:
        return []

    def encode(self, seconds: float, duration: float) -> str:
        return f"{_clamped(seconds, duration):.{self.decimals}f} s"

    def encode_span(self, span: Span, duration: float) -> str:
        """``12.3 s to 15.0 s``."""
        return f"{self.encode(span.start, duration)} to {self.encode(span.end, duration)}"

    def decode(self, token: str, duration: float) -> float:
        _check_duration(duration)
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*s", token.strip())
        if not match:
            raise ConfigError(f"{token!r} is not a time like '12.3 s'")
        return min(float(match[1]), duration)

    def step(self, duration: float) -> float:
        return 10.0**-self.decimals

    def _mark(self, duration: float) -> Mark:
        return _lita_mark(duration)


class DigitsCodec(TimeCodec):
    """Absolute seconds as a fixed number of dedicated tokens: 12.3 s is ``<d0><d0><d1><d2><dot><d3>``.

    Six symbols, zero-padded, tenths by default, as TRACE has it; the tokens' names and the missing separator are ours.

    Args:
        whole: Digits before the point, 1 to 9; four reach 2 h 46 min.
        decimals: Digits after it, 0 to 6. Rounding as in `SecondsCodec`.
    """

    name = "digits"

    def __init__(self, *, whole: int = 4, decimals: int = 1) -> None:
        _check_range("whole", whole, 1, 9)
        _check_range("decimals", decimals, 0, 6)
        self.whole, self.decimals = whole, decimals
        tail = rf"\s*<dot>(?:\s*<d[0-9]>){{{decimals}}}" if decimals else ""
        self._pattern = rf"<d[0-9]>(?:\s*<d[0-9]>){{{whole - 1}}}{tail}"

    def tokens(self) -> list[str]:
        return [f"<d{i}>" for i in range(10)] + (["<dot>"] if self.decimals else [])

    def encode(self, seconds: float, duration: float) -> str:
        width = self.whole + (self.decimals + 1 if self.decimals else 0)
        digits = f"{_clamped(seconds, duration):0{width}.{self.decimals}f}"
        if len(digits) > width:
            raise ConfigError(
                f"{seconds} s does not fit {self.whole} digits before the point; raise the option 'whole'"
            )
        return "".join("<dot>" if c == "." else f"<d{c}>" for c in digits)

    def decode(self, token: str, duration: float) -> float:
        _check_duration(duration)
        if not re.fullmatch(self._pattern, token):
            raise ConfigError(f"{token!r} is not {self.whole} + {self.decimals} digit tokens like '<d0>'")
        return min(self._seconds(token), duration)

    def step(self, duration: float) -> float:
        return 10.0**-self.decimals

    @staticmethod
    def _seconds(token: str) -> float:
        return float("".join("." if symbol == "dot" else symbol[1] for symbol in re.findall(r"<(d[0-9]|dot)>", token)))

    def _mark(self, duration: float) -> Mark:
        other = _lita_mark(duration)
        return Mark(
            f"{self._pattern}|{other.pattern}",
            lambda t: other.read(t) if t[:2].lower() == "<t" else self._seconds(t.lower()),
        )


class TwoDigitCodec(TimeCodec):
    """``from 25 to 60``: hundredths of the clip, 00 to 99, as plain text; read back as VTimeLLM does, the end counts one more.

    VTimeLLM writes ``min(round(100 t / duration), 99)`` for both bounds, so that a span read back is too long by a hundredth. We write
    the end that reads back nearest.
    """

    name = "two_digit"
    _after = r"(?![0-9:%]|\.[0-9]|\s*(?:s|secs?|seconds?|m|min(?:ute)?s?)\b)"
    _bare = (
        rf"(?<![\w.:])[0-9]{{2}}(?=\s(?:to|and)\s[0-9]{{2}}{_after})|(?<=[0-9]{{2}}\s)(?:to|and)\s[0-9]{{2}}{_after}"
    )

    def tokens(self) -> list[str]:
        return []

    def encode(self, seconds: float, duration: float) -> str:
        return f"{min(round(100 * _clamped(seconds, duration) / duration), 99):02d}"

    def encode_span(self, span: Span, duration: float) -> str:
        """``from 25 to 60``."""
        bounds = [100 * _clamped(t, duration) / duration for t in (span.start, span.end)]
        start, end = min(round(bounds[0]), 99), round(bounds[1]) - 1
        if end < start:  # shorter than a hundredth: the one that its middle lies in
            start = end = min(int(sum(bounds) / 2), 99)
        return f"from {start:02d} to {end:02d}"

    def decode(self, token: str, duration: float) -> float:
        _check_duration(duration)
        if not re.fullmatch("[0-9]{2}", token):
            raise ConfigError(f"{token!r} is not two digits")
        return int(token) / 100 * duration

    def step(self, duration: float) -> float:
        return duration / 50  # what lies in the last hundredth is said to begin with it

    def _mark(self, duration: float) -> Mark:
        def read(words: str) -> float:
            hundredth = int(words[-2:]) + (len(words) > 2)  # "to 60" or "25"
            return hundredth / 100 * duration if duration > 0 else math.nan

        return Mark(self._bare, read)


CODECS: dict[str, type[TimeCodec]] = {
    codec.name: codec for codec in (RelativeCodec, SecondsCodec, DigitsCodec, TwoDigitCodec)
}


def make_codec(name: str, **options: Any) -> TimeCodec:
    """A codec by name.

    Args:
        name: ``relative`` (options ``num_tokens``, ``template``), ``seconds`` (``decimals``), ``digits`` (``whole``, ``decimals``) or
            ``two_digit``.
        options: Keyword arguments of the codec.

    Raises:
        ConfigError: Unknown name or option.
    """
    if name not in CODECS:
        raise ConfigError(f"time codec {name!r} is not one of {', '.join(CODECS)}")
    try:
        return CODECS[name](**options)
    except TypeError as error:
        raise ConfigError(f"time codec {name!r} does not take these options: {options} ({error})") from error


def warn_if_coarse(codec: TimeCodec, duration: float, *, shortest_event: float) -> bool:
    """Warn when the codec's step is more than half the shortest event that should be found; returns whether it is.

    Args:
        duration: Longest video, seconds.
        shortest_event: Seconds.
    """
    step = codec.step(duration)
    if step <= 0.5 * shortest_event:
        return False
    warnings.warn(
        f"the {codec.name!r} time codec can only say every {step:.2f} s of a {duration:g} s video, too coarse for "
        f"events of {shortest_event:g} s; use more tokens (num_tokens) or the 'seconds' codec",
        UserWarning,
        stacklevel=2,
    )
    return True


def _lita_mark(duration: float) -> Mark:
    return RelativeCodec()._mark(duration)


def _check_duration(duration: float) -> None:
    if not (math.isfinite(duration) and duration > 0):
        raise ConfigError(f"duration={duration} s is not a positive length of a video")


def _clamped(seconds: float, duration: float) -> float:
    _check_duration(duration)
    if not math.isfinite(seconds):
        raise ConfigError(f"time {seconds} s is not finite")
    return min(max(float(seconds), 0.0), duration)


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name}={value} is not between {low} and {high}")
