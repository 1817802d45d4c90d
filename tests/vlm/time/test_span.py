"""Spans: order, clamping and overlap."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm.errors import ConfigError
from vlm.time import Span

TIMES = st.floats(-1e6, 1e6)
SPANS = st.builds(Span.of, TIMES, TIMES)


def test_iou_of_the_paper_example() -> None:
    assert Span(10, 20).iou(Span(15, 30)) == 0.25


def test_instants_have_no_overlap() -> None:
    assert Span(60, 60).iou(Span(60, 60)) == 0.0
    assert Span(5, 5).iou(Span(0, 10)) == 0.0


def test_apart_and_touching_spans_do_not_overlap() -> None:
    assert Span(0, 1).iou(Span(2, 3)) == 0.0
    assert Span(0, 1).iou(Span(1, 3)) == 0.0


@pytest.mark.parametrize("bounds", [(2.0, 1.0), (math.nan, 1.0), (0.0, math.inf)])
def test_impossible_bounds_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"Span\("):
        Span(*bounds)


@given(SPANS, SPANS)
def test_iou_is_symmetric_and_between_0_and_1(a: Span, b: Span) -> None:
    assert a.iou(b) == b.iou(a)
    assert 0.0 <= a.iou(b) <= 1.0 + 1e-12


@given(SPANS, st.floats(0, 1e6))
def test_clamp_stays_inside_and_changes_nothing_twice(span: Span, duration: float) -> None:
    inside = span.clamp(duration)
    assert 0.0 <= inside.start <= inside.end <= duration
    assert inside.clamp(duration) == inside
