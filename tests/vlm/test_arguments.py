"""Functions as command lines: words and options in any order, types from the signature, help from the docstring."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm.arguments import call_with


def verb(task: str, *options: str, limit: int | None = None, out: Path = Path("here"), fresh: bool = False) -> tuple:
    """Do something.

    Args:
        task: What to do.
        options: ``key=value`` words.
        limit: At most so many;
            50 % are enough.
        out: Where to.
        fresh: Start anew.
    """
    return task, options, limit, out, fresh


@pytest.mark.parametrize(
    "line",
    ["niah a=1 b=2 --limit 3 --fresh", "niah --limit 3 a=1 --fresh b=2", "--fresh --limit 3 niah a=1 b=2"],
)
def test_words_and_options_come_in_any_order(line: str) -> None:
    assert call_with(verb, line.split(), prog="vlm eval") == ("niah", ("a=1", "b=2"), 3, Path("here"), True)


def test_help_is_the_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        call_with(verb, ["--help"], prog="vlm eval")
    told = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert "Do something." in told and "At most so many; 50 % are enough." in told


@pytest.mark.parametrize("line", ["", "niah --limit many", "niah --nope"])
def test_bad_lines_end_with_a_usage_and_no_traceback(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        call_with(verb, line.split(), prog="vlm eval")
    assert stop.value.code == 2
    assert "usage: vlm eval" in capsys.readouterr().err
