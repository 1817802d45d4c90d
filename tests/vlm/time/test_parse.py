"""The tolerant parser on many ways to say a time, the strict one on LITA's cases, and both on noise."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm.time import Span, make_codec, parse_lita
from vlm.time.codec import RelativeCodec
from vlm.time.parse import parse_times

RELATIVE = make_codec("relative", num_tokens=61)  # on a clip of 60 s token <tN> is N seconds


@pytest.mark.parametrize(
    ("text", "spans", "how"),
    [
        ("From <t10> to <t20>.", [(10, 20)], "tokens"),
        ("<t10> <t20> a dog runs. <t21> <t30> a cat sleeps.", [(10, 20), (21, 30)], "tokens"),
        ("<t10><t20>", [(10, 20)], "tokens"),
        ("<t20> <t10>", [(10, 20)], "tokens"),
        ("It appears at <t7>.", [(7, 7)], "tokens"),
        ("<t99>", [(60, 60)], "tokens"),
        ("<10.0> <20.5>", [(10, 20.5)], "angle"),
        ("<10> - <20>", [(10, 20)], "angle"),
        ("<00:10> <00:12>", [(10, 12)], "angle"),
        ("at 12.3 s", [(12.3, 12.3)], "seconds"),
        ("12.3s", [(12.3, 12.3)], "seconds"),
        ("3 seconds to 5 seconds", [(3, 5)], "seconds"),
        ("3.5-5 s", [(3.5, 5)], "seconds"),
        ("from about 3 to around 5 sec", [(3, 5)], "seconds"),
        ("between 3 and 5 seconds", [(3, 5)], "seconds"),
        ("between 3 s and 5 s", [(3, 5)], "seconds"),
        ("It starts at 3 s and ends at 5.5 s.", [(3, 5.5)], "seconds"),
        ("It appears at 3 s and disappears at 8 s.", [(3, 8)], "seconds"),
        ("(3.0 s, 5.0 s)", [(3, 5)], "seconds"),
        ("at -3 s", [(0, 0)], "seconds"),
        ("12 s -15 s", [(12, 15)], "seconds"),
        ("0.5 min", [(30, 30)], "seconds"),
        ("between 0.2 and 0.5 minutes", [(12, 30)], "seconds"),
        ("0 min 5 s until 0 min 7.5 s", [(5, 7.5)], "seconds"),
        ("0:05", [(5, 5)], "clock"),
        ("0:05-0:10", [(5, 10)], "clock"),
        ("from 00:00:05.5 to 00:00:10.25", [(5.5, 10.25)], "clock"),
        ("00:00:01,500 --> 00:00:03,000", [(1.5, 3)], "clock"),
        ("from 0:05 to 10 s", [(5, 10)], "clock"),
        ("First 0:05, then 10 s.", [(5, 5), (10, 10)], "clock+seconds"),
        ("from 3 to 5", [(3, 5)], "range"),
        ("between 3 and 5.", [(3, 5)], "range"),
        ("12.5 - 14.0", [(12.5, 14)], "range"),
        ("3-5", [(3, 5)], "range"),
        ("It is (3, 5).", [(3, 5)], "range"),
        ("3.0, 5.0", [(3, 5)], "range"),
        ("Start: 3.0, End: 5.0", [(3, 5)], "range"),
        ("12.5", [(12.5, 12.5)], "range"),
        ("[[1, 2], [3.5, 4]]", [(1, 2), (3.5, 4)], "json"),
        ('{"start": 3, "end": 5}', [(3, 5)], "json"),
        ('```json\n[{"start_time": "0:03", "end_time": "00:00:05.5"}]\n```', [(3, 5.5)], "json"),
        ('Sure: {"timestamp": ["3 s", "5 s"], "label": "dog"}', [(3, 5)], "json"),
        ('{"events": [{"time": 3.0, "what": 7}, {"time": "0:09"}]}', [(3, 3), (9, 9)], "json"),
        ('{"start": "<t3>", "end": "<t5>"}', [(3, 5)], "json"),
        ('{"start": 5, "end": 3}', [(3, 5)], "json"),
        ("It is not visible until 5.0 s.", [(5, 5)], "seconds"),
        ("from 50 s to 100 s", [(50, 60)], "seconds"),
    ],
)
def test_ways_to_say_a_time(text: str, spans: list[tuple[float, float]], how: str) -> None:
    result = RELATIVE.parse(text, 60.0)
    assert [(pytest.approx(s.start), pytest.approx(s.end)) for s in result.spans] == spans
    assert (result.how, result.fallback) == (how, False)


@pytest.mark.parametrize(
    "text",
    [
        "It never appears.",
        "The dog is not present.",
        "No.",
        "There is no red circle.",
        "It doesn't appear in the video.",
        "N/A",
    ],
)
def test_absent_events_give_no_spans_and_no_fallback(text: str) -> None:
    result = RELATIVE.parse(text, 60.0)
    assert (result.spans, result.how, result.fallback) == ([], "absent", False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A red circle.",
        "There are 3 circles.",
        "3",
        "between 3 and 5 people",
        "2-3 dogs",
        "The clip is 20 seconds long.",
        "a 20 s long clip",
        "It lasts for 5 seconds.",
        "a song of the 1980s",
        "a 16:9 picture",
        "lunch at 12:30 pm",
        "version 2.5.1",
        "50% to 60%",
        '{"count": 3, "bbox": [1, 2, 3, 4]}',
        "[1]",
        "<t>",
    ],
)
def test_numbers_that_are_no_times(text: str) -> None:
    result = RELATIVE.parse(text, 60.0)
    assert (result.spans, result.how, result.fallback) == ([], "none", True)
    assert result.text == text


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("at 1 hour 5 minutes", [(3900, 3900)]),
        ("from 1h 2m 3s to 1h2m9s", [(3723, 3729)]),
        ("from 1 to 2 hours", [(3600, 7200)]),
        ("at 2 hours and 10 s", [(7210, 7210)]),
        ("from 12,5 s to 14,2 s", [(12.5, 14.2)]),
    ],
)
def test_hours_commas_and_brackets(text: str, spans: list[tuple[float, float]]) -> None:
    assert [(s.start, s.end) for s in RELATIVE.parse(text, 9000.0).spans] == spans


def test_text_shows_seconds_instead_of_tokens() -> None:
    assert RELATIVE.parse("From <t3> to <t5> seconds.", 60.0).text == "From 3.0 s to 5.0 s."
    assert RELATIVE.parse("<t3> <t5> a dog", 60.0).text == "3.0 s to 5.0 s a dog"
    assert RELATIVE.parse("at 12.345 s", 60.0).text == "at 12.345 s"
    digits = make_codec("digits")
    assert digits.parse(f"at {digits.encode(7.0, 60.0)}", 60.0).text == "at 7.0 s"


@pytest.mark.parametrize(
    ("codec", "text", "shown", "spans"),
    [
        ("relative", "from <t0> to <t99>", "from 5.0 s to 18.0 s", [(5.0, 18.0)]),
        ("relative", "<t0> <t99> a dog for 3 s", "5.0 s to 18.0 s a dog for 3 s", [(5.0, 18.0)]),
        ("digits", "at <d0><d0><d0><d7><dot><d5>", "at 12.5 s", [(12.5, 12.5)]),
        ("seconds", "from 4.9 s to 8.9 s.", "from 9.9 s to 13.9 s.", [(9.9, 13.9)]),
        ("seconds", "from 4.9 to 8.9 s, 2 dogs", "from 9.9 to 13.9 s, 2 dogs", [(9.9, 13.9)]),
        ("seconds", "at 0:04 and at 99 s", "at 9.0 s and at 18.0 s", [(9.0, 9.0), (18.0, 18.0)]),
        ("seconds", '{"start": 4.5, "end": 8}', '{"start": 9.5, "end": 13.0}', [(9.5, 13.0)]),
        ("seconds", "never", "never", []),
    ],
)
def test_an_offset_moves_spans_and_words_together(
    codec: str, text: str, shown: str, spans: list[tuple[float, float]]
) -> None:
    result = make_codec(codec).parse(text, 13.0, offset=5.0)
    assert result.text == shown
    assert [(s.start, s.end) for s in result.spans] == [pytest.approx(s) for s in spans]


def test_digit_tokens_may_be_apart() -> None:
    result = make_codec("digits").parse("<d0> <d0> <d1> <d2> <dot> <d3>", 60.0)
    assert (result.spans, result.how) == ([Span(12.3, 12.3)], "tokens")


def test_other_codecs_read_litas_tokens_too() -> None:
    for name in ("seconds", "digits"):
        assert make_codec(name).parse("<t0> <t99>", 60.0).spans == [Span(0.0, 60.0)]


def test_without_a_duration_nothing_is_clamped_and_tokens_stay() -> None:
    assert RELATIVE.parse("at 900 s", 0.0).spans == [Span(900.0, 900.0)]
    unknown = RELATIVE.parse("at <t5>", 0.0)
    assert (unknown.spans, unknown.text) == ([], "at <t5>")


@pytest.mark.parametrize(
    ("text", "span", "fallback"),
    [
        ("<10.0> <20.0> x", (10, 20), False),
        ("<20> <10>", (10, 20), False),
        ("<15.5> x", (0, 60), True),
        ("<70.2> <80>", (60, 60), False),
        ("<t12> <t30>", (0, 60), True),
        ("12.5 s to 14 s", (0, 60), True),
        ("<1.> <.5> <50>", (0.5, 1), False),
        ("<1.> <0.5> <50>", (0.5, 1), False),
        ("<-3> <5> <6>", (5, 6), False),
    ],
)
def test_litas_own_rule(text: str, span: tuple[float, float], fallback: bool) -> None:
    result = parse_lita(text, 60.0)
    assert [(s.start, s.end) for s in result.spans] == [span]
    assert result.fallback is fallback


def test_litas_rule_keeps_the_explanation_and_follows_decoded_tokens() -> None:
    text = RelativeCodec().angle_text("<t12> <t30> because the dog jumps.", 99.0)
    result = parse_lita(text, 99.0)
    assert result.spans == [Span(12.0, 30.0)]
    assert result.text == "because the dog jumps."


PIECES = st.sampled_from(
    [*"<>[]{},.:-", "<t1>", "<t", "999999999", "12", " s", " to ", "from ", " and ",
     '"start"', '"end"', "0:59", "1e999", "never", "\u0663", "\n", "min", "between ", '"time"', "--", "NaN", "<d1>"]
)  # fmt: skip


@given(
    text=st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=40).map("".join)),
    duration=st.sampled_from([0.0, 0.1, 60.0, 7200.0]),
)
def test_no_text_breaks_the_parsers(text: str, duration: float) -> None:
    for codec in (RELATIVE, make_codec("seconds"), make_codec("digits")):
        result = codec.parse(text, duration)
        assert all(0.0 <= s.start <= s.end and (duration <= 0 or s.end <= duration) for s in result.spans)
        assert result.fallback == (result.how == "none")
        assert bool(result.spans) == (result.how not in ("none", "absent"))
    strict = parse_lita(text, duration)
    assert len(strict.spans) == 1
    assert 0.0 <= strict.spans[0].start <= strict.spans[0].end <= duration


KEYS = st.sampled_from(["start", "end", "time", "spans", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(value=JSON)
def test_no_json_breaks_the_parser(value: object) -> None:
    result = parse_times(json.dumps(value), 60.0)
    assert all(0.0 <= s.start <= s.end <= 60.0 for s in result.spans)


@pytest.mark.parametrize(
    "text", ["[" * 20_000, "<" * 20_000, "1 " * 20_000, "1:" * 20_000, '{"a":' * 5_000, " " * 20_000 + "s"]
)
@pytest.mark.timeout(10)
def test_long_noise_is_read_in_little_time(text: str) -> None:
    assert RELATIVE.parse(text, 60.0).spans == []
