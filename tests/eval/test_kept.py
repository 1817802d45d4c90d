"""`eval.kept`: what was measured is measured once, and only under the same circumstances."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.kept import Kept


def test_each_thing_is_measured_once(tmp_path: Path) -> None:
    path, made = tmp_path / "parts.json", list[int]()

    def measure() -> int:
        made.append(len(made))
        return made[-1]

    kept = Kept(path, {"seed": 0})
    assert [kept("a", measure), kept("b", measure), kept("a", measure)] == [0, 1, 0]
    again = Kept(path, {"seed": 0})
    assert (again("a", measure), again("b", measure), made) == (0, 1, [0, 1])
    assert Kept(path, {"seed": 1})("a", measure) == 2, "other circumstances"
    again.drop()
    again.drop()
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"same": 1}', '{"same": 1, "known": 3}', "\xff"])
def test_a_file_that_cannot_be_read_counts_for_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "parts.json").write_bytes(text.encode("latin-1"))
    assert Kept(tmp_path / "parts.json", 1).known == {}
