"""`vlm reproduce`: what is done stays done, and the parts of LongVILA that take seconds say what they should."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from eval import longvila, reproduce
from eval.report import Row, markdown_table, read_results
from eval.reproduce import Part, Setting, finding
from vlm.errors import ConfigError


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A paper of two parts; the second fails the first time."""
    done: list[str] = []

    def part(name: str) -> list[Row]:
        done.append(name)
        if done == ["a", "b"]:
            raise RuntimeError("interrupted")
        return [finding(f"claim {name}", "2 x", 3.0, "x", 2.0, model="nano")]

    module = ModuleType("a_paper")
    module.parts = lambda setting: [Part(name, partial(part, name)) for name in "ab"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_paper", module)
    monkeypatch.setitem(reproduce.PAPERS, "paper", "a_paper")
    return done


def test_an_interrupted_run_goes_on_where_it_stood(paper: list[str], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="interrupted"):
        reproduce.run("paper", out=tmp_path)
    path = reproduce.run("paper", out=tmp_path)
    assert paper == ["a", "b", "b"]
    rows = read_results(path)["rows"]
    assert [(r["claim"], r["paper"], r["ours"], r["holds"]) for r in rows] == [
        ("claim a", "2 x", 3.0, True),
        ("claim b", "2 x", 3.0, True),
    ]
    assert [f.name for f in tmp_path.iterdir()] == ["paper.json"]
    assert "| claim a | 2 x | 3 x | ≥ 2 | yes | model nano |" in markdown_table(path)


def test_parts_of_another_setting_are_measured_again(paper: list[str], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="interrupted"):
        reproduce.run("paper", out=tmp_path)
    reproduce.run("paper", out=tmp_path, seed=1)
    assert paper == ["a", "b", "a", "b"]


def test_damaged_parts_are_measured_again(paper: list[str], tmp_path: Path) -> None:
    (tmp_path / ".paper-parts.json").write_text('{"same": 1}')
    paper.append("begun")
    assert json.loads(reproduce.run("paper", out=tmp_path).read_text())["rows"]


def test_an_unknown_paper_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no paper 'longvita'; there is lita, longvila"):
        reproduce.run("longvita", out=tmp_path)


def test_a_shared_sequence_of_nano_is_exact() -> None:
    rows = longvila.exactness(Setting(quick=True))
    assert [r["ours"] <= float(r["target"].split()[1]) for r in rows] == [True] * 3
    assert all(r["ours"] >= 0.0 for r in rows)


def test_a_ring_sends_more_and_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(*args: Any, **options: Any) -> list[dict[str, list[float]]]:
        return [{"ring": [2.0, 3.0], "shared": [1.0, 4.0]}] * 4

    monkeypatch.setattr(longvila, "run_world", seconds)
    rows = {r["claim"]: r for r in longvila.against_ring(Setting(quick=True))}
    assert rows["time of a step, zigzag ring / 2-D, on this machine"]["ours"] == 2.0
    assert all(r["ours"] > 1.0 for name, r in rows.items() if "on this machine" not in name)


def test_packing_leaves_the_loss_as_it_is() -> None:
    speed, apart = longvila.packing(Setting(quick=True))
    assert apart["ours"] <= 1e-5 and speed["ours"] > 0.5


def test_needles_are_read_off_the_results_and_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from eval import niah

    def run(*, model: str, out: Path, lengths: str, **_: Any) -> None:
        rows = [{"name": f"free: {n} frames", "value": 100.0 if model == "nano" else 10.0} for n in lengths.split(",")]
        rows.append({"name": "chance: guessing among the answers", "value": 50.0})
        (out / "niah.json").write_text(json.dumps({"rows": rows}))

    monkeypatch.setattr(niah, "run", run)
    rows = longvila.needles(Setting(quick=True))
    assert [(r["setting"]["frames"], r["ours"]) for r in rows] == [
        *((n, 100.0) for n in (64, 512, 1400)),
        *((n, 10.0) for n in (64, 512, 1400)),
    ]
    assert {r["setting"]["chance"] for r in rows} == {50.0}
    longvila.draw(tmp_path / "found.png", rows)
    assert (tmp_path / "found.png").read_bytes()[:4] == b"\x89PNG"
