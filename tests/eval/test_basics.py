"""What counts as a right answer in the basics."""

from __future__ import annotations

import pytest

from data_recipes.synth.smol_questions import Turn
from eval.basics import Tally, _right, _span_rows, names, says, words


def test_answers_are_compared_by_their_words() -> None:
    assert words("The  Fox-squirrel, an apple!") == "fox squirrel apple"
    assert says("Two.", "two") and not says("two foxes", "two")
    assert names("A Granny Smith and a lemon.", "Granny Smith")
    assert not names("a lemonade", "lemon")


@pytest.mark.parametrize(
    ("text", "right"), [("The fox.", True), ("the lemon", False), ("the fox and the lemon", False), ("", False)]
)
def test_order_needs_the_right_one_and_only_that(text: str, right: bool) -> None:
    turn = Turn("order", "?", "The fox.", truth="fox", choices=("lemon", "fox"))
    assert _right(turn, text) == right


def test_rows_carry_chance_blind_and_interval() -> None:
    made = Tally([1, 1, 0, 1], [0, 1, 0, 0], [0.5] * 4).row("presence", 85)
    assert (made["value"], made["setting"]["chance"], made["setting"]["blind"]) == (75.0, 50.0, 25.0)
    assert made["setting"]["low"] < 75 < made["setting"]["high"]
    lazy = Tally([1, 1, 1, 0], truths=["yes", "yes", "yes", "no"]).row("presence")
    assert lazy["value"] == 50.0  # always yes
    spans = _span_rows([1.0, 0.25], [0.5, 0.1], 30.0)
    assert spans[0]["value"] == 0.625 and spans[1]["value"] == 50.0
