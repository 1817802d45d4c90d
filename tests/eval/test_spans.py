"""Temporal metrics: LITA's golden cases, micro against macro, absent events, quantisation ceilings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.spans import Judged, Question, judge, rtl_truth, set_iou, summarise
from vlm.errors import ConfigError, DataError
from vlm.time import Span, make_codec

RELATIVE = make_codec("relative")
SPANS = st.lists(st.builds(Span.of, st.floats(0, 100), st.floats(0, 100)), max_size=5)


def question(*truth: tuple[float, float], duration: float = 60.0) -> Question:
    return Question("v", tuple(Span(*t) for t in truth), duration)


@pytest.mark.parametrize(
    ("answer", "iou", "fallback"),
    [
        ("<10.0> <20.0> x", 1.0, False),
        ("<20> <10>", 1.0, False),
        ("<15.5> x", 10 / 60, True),
        ("<70.2> <80>", 0.0, False),
        ("It happens at noon.", 10 / 60, True),
        ("<15> <30>", 0.25, False),
    ],
)
def test_litas_protocol_on_its_golden_cases(answer: str, iou: float, fallback: bool) -> None:
    judged = judge(answer, question((10, 20)), RELATIVE, protocol="lita")
    assert (judged.iou, judged.fallback) == (pytest.approx(iou), fallback)


@pytest.mark.parametrize(
    ("answer", "iou"), [("from 10.0 s to 20.0 s: a dog", 1.0), ("at the end", 10 / 60), ("not present", 10 / 60)]
)
def test_litas_protocol_reads_other_codecs_as_they_write(answer: str, iou: float) -> None:
    judged = judge(answer, question((10, 20)), make_codec("seconds"), protocol="lita")
    assert judged.iou == pytest.approx(iou) and judged.fallback == (iou < 1)


def test_litas_protocol_decodes_tokens_with_two_decimals() -> None:
    judged = judge("<t25> <t50> because", question((30.3, 60.61), duration=120.0), RELATIVE, protocol="lita")
    assert judged.iou == 1.0


def test_ground_truth_strings() -> None:
    assert rtl_truth("[<10.5> <20.0>] the dog jumps", "v", 60.0) == question((10.5, 20.0))
    with pytest.raises(DataError, match="fewer than two"):
        rtl_truth("[<10.5>] the dog", "v", 60.0)


@pytest.mark.parametrize(
    ("answer", "truth", "iou"),
    [
        ("from 10 s to 20 s", [(10, 20)], 1.0),
        ("at noon", [(10, 20)], 0.0),
        ("It never happens.", [], 1.0),
        ("at noon", [], 0.0),
        ("10 s to 20 s", [], 0.0),
        ("It never happens.", [(10, 20)], 0.0),
        ("1 s to 3 s, and 5 s to 7 s", [(1, 3), (5, 7)], 1.0),
        ("1 s to 3 s", [(1, 3), (5, 7)], 0.5),
    ],
)
def test_the_tolerant_protocol(answer: str, truth: list[tuple[float, float]], iou: float) -> None:
    assert judge(answer, question(*truth), make_codec("seconds")).iou == pytest.approx(iou)


def test_means_over_questions_and_over_videos() -> None:
    judged = [Judged("a", 1.0, False, "x"), Judged("a", 0.0, True, "none"), Judged("a", 0.5, False, "x")]
    summary = summarise([*judged, Judged("b", 0.4, False, "x")])
    assert summary["miou"] == pytest.approx(1.9 / 4)
    assert summary["miou_macro"] == pytest.approx((0.5 + 0.4) / 2)
    assert [summary[f"R@{t}"] for t in (0.3, 0.5, 0.7)] == [0.75, 0.5, 0.25]
    assert summary["R@0.5_macro"] == pytest.approx((2 / 3 + 0) / 2)
    assert summary["fallback_rate"] == 0.25
    assert (summary["questions"], summary["videos"]) == (4, 2)


@given(SPANS, SPANS)
def test_overlap_of_sets(a: list[Span], b: list[Span]) -> None:
    assert set_iou(a, b) == pytest.approx(set_iou(b, a), abs=1e-9)
    assert -1e-9 <= set_iou(a, b) <= 1.0 + 1e-9
    if len(a) == len(b) == 1:
        assert set_iou(a, b) == pytest.approx(a[0].iou(b[0]), abs=1e-9)


def test_overlapping_parts_count_once() -> None:
    assert set_iou([Span(0, 6), Span(4, 10)], [Span(0, 10)]) == 1.0


def test_misuse_is_explained() -> None:
    with pytest.raises(ConfigError, match="tolerant, lita"):
        judge("", question((1, 2)), RELATIVE, protocol="vibes")
    with pytest.raises(DataError, match="one true span"):
        judge("", question(), RELATIVE, protocol="lita")
    with pytest.raises(DataError, match="no answers"):
        summarise([])
