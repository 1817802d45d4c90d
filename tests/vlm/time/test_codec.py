"""Codecs: golden values of LITA, rounding, clamping, and what comes back after encode and decode."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm.errors import ConfigError
from vlm.time import Span, TimeCodec, make_codec, warn_if_coarse
from vlm.time.codec import RelativeCodec

CODECS = [
    make_codec("relative"),
    make_codec("relative", num_tokens=2),
    make_codec("relative", num_tokens=300, template="[[time {t}]]"),
    make_codec("seconds"),
    make_codec("seconds", decimals=0),
    make_codec("seconds", decimals=3),
    make_codec("digits"),
    make_codec("digits", whole=5, decimals=0),
    make_codec("two_digit"),
]
codecs = pytest.mark.parametrize("codec", CODECS, ids=lambda c: f"{c.name}-{len(c.tokens())}")
DURATIONS = st.floats(0.5, 9999.0)
SHARES = st.floats(0.0, 1.0)


@pytest.mark.parametrize(
    ("seconds", "index", "decoded"),
    [
        (0, 0, 0.0),
        (0.60, 0, 0.0),
        (0.61, 1, 1.21),
        (1.8, 1, 1.21),
        (30, 25, 30.3),
        (59.99, 49, 59.39),
        (60, 50, 60.61),
        (119, 98, 118.79),
        (120, 99, 120.0),
    ],
)
def test_golden_values_of_lita(seconds: float, index: int, decoded: float) -> None:
    codec = make_codec("relative", num_tokens=100)
    assert codec.encode(seconds, 120.0) == f"<t{index}>"
    assert round(codec.decode(f"<t{index}>", 120.0), 2) == decoded


def test_half_cases_go_to_even_as_in_numpy() -> None:
    codec = RelativeCodec(num_tokens=11)
    halves = [0.5, 1.5, 2.5, 3.5, 8.5, 9.5]
    assert [codec.index(h, 10.0) for h in halves] == np.round(halves).astype(int).tolist() == [0, 2, 2, 4, 8, 10]


@pytest.mark.parametrize(("seconds", "token"), [(-5.0, "<t0>"), (125.0, "<t99>"), (1e9, "<t99>")])
def test_times_outside_the_clip_are_clamped(seconds: float, token: str) -> None:
    assert make_codec("relative").encode(seconds, 120.0) == token


def test_an_index_past_the_last_token_means_the_end() -> None:
    assert make_codec("relative").decode("<t103>", 120.0) == 120.0


def test_vocabularies() -> None:
    assert make_codec("relative", num_tokens=3).tokens() == ["<t0>", "<t1>", "<t2>"]
    assert make_codec("seconds").tokens() == []
    assert make_codec("digits").tokens() == [f"<d{i}>" for i in range(10)] + ["<dot>"]
    assert "<dot>" not in make_codec("digits", decimals=0).tokens()


def test_written_forms() -> None:
    span = Span(12.34, 75.0)
    assert make_codec("relative").encode_span(span, 99.0) == "<t12> <t75>"
    assert make_codec("seconds").encode_span(span, 99.0) == "12.3 s to 75.0 s"
    assert make_codec("digits").encode(12.34, 99.0) == "<d0><d0><d1><d2><dot><d3>"


def test_marks_become_the_words_of_the_codec() -> None:
    text = "At {t:12.34} and {t:12.34-75}; {t:x} {t:-1} {t:1-} are none."
    left = "; {t:x} {t:-1} {t:1-} are none."
    assert make_codec("relative").write(text, 99.0) == "At <t12> and <t12> <t75>" + left
    assert make_codec("seconds").write(text, 99.0) == "At 12.3 s and 12.3 s to 75.0 s" + left
    assert make_codec("two_digit").write(text, 99.0) == "At 12 and from 12 to 75" + left
    assert make_codec("relative").write("{t:5.0} {t:0.0} {t:1-4}", 0.0) == "<t99> <t0> <t25> <t99>"


def test_angle_text_is_what_litas_evaluator_reads() -> None:
    assert RelativeCodec().angle_text("From <t12> to <t30>, done.", 120.0) == "From <14.55> to <36.36>, done."


@codecs
@given(duration=DURATIONS, share=SHARES)
def test_error_is_at_most_half_a_step(codec: TimeCodec, duration: float, share: float) -> None:
    seconds = share * duration
    back = codec.decode(codec.encode(seconds, duration), duration)
    assert 0.0 <= back <= duration
    assert abs(back - seconds) <= codec.step(duration) / 2 + 1e-9 * duration


@given(tokens=st.integers(2, 1000), duration=DURATIONS, share=SHARES)
def test_error_bound_of_relative_tokens(tokens: int, duration: float, share: float) -> None:
    codec = make_codec("relative", num_tokens=tokens)
    back = codec.decode(codec.encode(share * duration, duration), duration)
    assert abs(back - share * duration) <= duration / (2 * (tokens - 1)) + 1e-9 * duration


@codecs
@given(duration=DURATIONS, one=SHARES, other=SHARES)
def test_parse_reads_back_encoded_spans(codec: TimeCodec, duration: float, one: float, other: float) -> None:
    span = Span.of(one * duration, other * duration)
    result = codec.parse(f"It happens {codec.encode_span(span, duration)}, as you can see.", duration)
    assert not result.fallback
    (read,) = result.spans
    bound = codec.step(duration) / 2 + 1e-9 * duration
    assert abs(read.start - span.start) <= bound
    assert abs(read.end - span.end) <= bound


@codecs
@given(duration=st.floats(1.0, 9999.0), shares=st.lists(SHARES, min_size=2, max_size=6))
def test_several_spans_are_read_back_in_their_order(codec: TimeCodec, duration: float, shares: list[float]) -> None:
    spans = [Span.of(a * duration, b * duration) for a, b in zip(shares[::2], shares[1::2], strict=False)]
    result = codec.parse(codec.encode_spans(spans, duration), duration)
    bound = codec.step(duration) / 2 + 1e-9 * duration
    assert len(result.spans) == len(spans)
    for read, span in zip(result.spans, spans, strict=True):
        assert (read.start, read.end) == pytest.approx((span.start, span.end), abs=bound)


@codecs
def test_what_does_not_happen_has_no_span(codec: TimeCodec) -> None:
    result = codec.parse(codec.encode_spans([], 60.0), 60.0)
    assert (result.spans, result.how, result.fallback) == ([], "absent", False)


@codecs
def test_a_clip_cut_from_a_file_of_two_hours_answers_in_times_of_the_file(codec: TimeCodec) -> None:
    span, duration, offset = Span(10.0, 40.0), 100.0, 5400.0
    (read,) = codec.parse(codec.encode_span(span, duration), duration, offset=offset).spans
    assert (read.start - offset, read.end - offset) == pytest.approx((10.0, 40.0), abs=codec.step(duration) / 2 + 1e-6)


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("from 25 to 60", [(30.0, 73.2)]),
        ("From 00 to 99.", [(0.0, 120.0)]),
        ("It is between 25 and 60, as one sees.", [(30.0, 73.2)]),
        ("from 00 to 09, from 50 to 50", [(0.0, 12.0), (60.0, 61.2)]),
        ("25 to 60 seconds", [(25.0, 60.0)]),
        ("from 12.5 to 13.5", [(12.5, 13.5)]),
        ("from 25 s to 60 s", [(25.0, 60.0)]),
        ("two dogs and 25 cats", []),
    ],
)
def test_two_digits_are_read_as_vtimellm_reads_them(text: str, spans: list[tuple[float, float]]) -> None:
    read = make_codec("two_digit").parse(text, 120.0).spans
    assert [(s.start, s.end) for s in read] == [pytest.approx(s) for s in spans]


@codecs
def test_all_tokens_are_distinct_and_decode_in_order(codec: TimeCodec) -> None:
    assert len(set(codec.tokens())) == len(codec.tokens())
    times = [codec.decode(codec.encode(t, 60.0), 60.0) for t in np.linspace(0, 60, 31)]
    assert times == sorted(times)


@codecs
@pytest.mark.parametrize("duration", [0.0, -1.0, float("nan"), float("inf")])
def test_a_video_needs_a_length(codec: TimeCodec, duration: float) -> None:
    with pytest.raises(ConfigError, match="duration"):
        codec.encode(1.0, duration)


@codecs
def test_other_text_is_not_decoded(codec: TimeCodec) -> None:
    with pytest.raises(ConfigError, match="banana"):
        codec.decode("banana", 60.0)


def test_times_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ConfigError, match="nan"):
        make_codec("seconds").encode(float("nan"), 60.0)


def test_digits_say_when_they_run_out() -> None:
    with pytest.raises(ConfigError, match="whole"):
        make_codec("digits", whole=2).encode(100.0, 200.0)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("morse", {}, "relative, seconds, digits, two_digit"),
        ("two_digit", {"decimals": 2}, "decimals"),
        ("relative", {"tokens": 5}, "tokens"),
        ("relative", {"num_tokens": 1}, "num_tokens=1"),
        ("relative", {"template": "<t>"}, "template"),
        ("seconds", {"decimals": 9}, "decimals=9"),
        ("digits", {"whole": 0}, "whole=0"),
    ],
)
def test_wrong_options_name_the_way_out(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_codec(name, **options)


def test_coarse_codecs_warn() -> None:
    with pytest.warns(UserWarning, match=r"every 6\.06 s of a 600 s video"):
        assert warn_if_coarse(make_codec("relative"), 600.0, shortest_event=5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not warn_if_coarse(make_codec("relative"), 60.0, shortest_event=5.0)
        assert not warn_if_coarse(make_codec("seconds"), 36000.0, shortest_event=1.0)
