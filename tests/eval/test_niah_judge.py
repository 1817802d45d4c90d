"""Judging free words: tricky replies that look right or wrong and are not."""

from __future__ import annotations

import pytest

from eval.niah_judge import is_right, names_all, says_number, says_sentence, says_time, time_slack
from vlm.time import Span

DIGITS = [str(d) for d in range(10)]
NUMBERS = ("none", "one", "two", "three", "four")
RED, BLUE = ("a red circle", "red circle"), ("a blue star", "blue star")


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("7", "7", True),
        ("It is 7.", "7", True),
        ("77", "7", False),
        ("7 or 8", "7", False),
        ("the Yellow one", "yellow", True),
        ("", "7", False),
        ("B", "B", True),
        ("(b)", "B", True),
        ("B. yellow", "B", True),
        ("The answer is B.", "B", True),
        ("**B**", "B", True),
        ("B - cat", "B", True),
        ("The answer is B because it is a cat.", "B", True),
        ("The answer is a cat", "A", False),
        ("A's", "A", False),
        ("Answer: C", "B", False),
        ("A dog, so B", "A", False),
        ("Bad", "B", False),
    ],
)
def test_one_answer(reply: str, answer: str, right: bool) -> None:
    assert is_right(reply, answer, DIGITS) is right


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("A sea lion, a tabby and a rabbit.", True),
        ("An Egyptian cat.", True),
        ("A tabby and a mouse.", False),
        ("A cat.", False),
        ("Tabbys", False),
    ],
)
def test_one_of_several_names_and_none_of_the_others(reply: str, right: bool) -> None:
    assert is_right(reply, ("a tabby", "tabby", "Egyptian cat"), ["tabby", "mouse"]) is right


@pytest.mark.parametrize(
    ("reply", "named", "ordered"),
    [
        ("a red circle, a blue star", True, True),
        ("A BLUE STAR and a red circle.", True, False),
        ("a red circle, a blue star, a red circle", True, True),
        ("a red circle", False, False),
        ("a red circle, a blue star, a pink cross", False, False),
        ("a red star, a blue circle", False, False),
        ("red circles, blue stars", False, False),
        ("", False, False),
    ],
)
def test_several_answers(reply: str, named: bool, ordered: bool) -> None:
    assert names_all(reply, [RED, BLUE], ["pink cross"]) is named
    assert names_all(reply, [RED, BLUE], ["pink cross"], ordered=True) is ordered


@pytest.mark.parametrize(
    ("reply", "number", "right"),
    [
        ("a red circle, a blue star: two", 2, True),
        ("2", 2, True),
        ("Two.", 2, True),
        ("two or three", 2, False),
        ("twenty", 2, False),
        ("22", 2, False),
        ("2 circles, that is two", 2, True),
        ("none", 0, True),
        ("No.", 0, True),
        ("no, two", 2, True),
        ("no, two", 0, False),
        ("some", 0, False),
        ("", 0, False),
    ],
)
def test_numbers(reply: str, number: int, right: bool) -> None:
    assert says_number(reply, number, NUMBERS) is right


def test_times() -> None:
    beep = Span(100.0, 101.0)
    assert time_slack(beep, 1400.0) == 28.0
    assert time_slack(beep, 10.0) == 1.0
    assert time_slack(Span(0.0, 8.0), 10.0) == 4.0
    assert says_time([Span(99.9, 101.5)], beep, 110.0)
    assert not says_time([], beep, 110.0)
    assert not says_time([Span(0.0, 110.0)], beep, 110.0), "the whole video is no time"
    assert not says_time([Span(10.0, 11.0), beep], beep, 110.0), "the first time counts"


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("He might even have been made AMIABLE himself!", True),
        ("He might have been made amiable himself", True),
        ("himself amiable made been have even might he", False),
        ("he might even", False),
        ("Well: he might, uh, even have been made amiable, himself", True),
        ("", False),
    ],
)
def test_heard_sentences(reply: str, right: bool) -> None:
    assert says_sentence(reply, "he might even have been made amiable himself") is right
