"""Results files: complete, atomic, with computed verdicts; tables and plots made of them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.report import (
    bar_chart,
    heat_maps,
    holds,
    machine,
    markdown_table,
    read_results,
    row,
    wilson,
    write_results,
)
from vlm.errors import DataError
from vlm.files import write_text

KEYS = {"command", "versions", "commit", "seed", "machine", "date", "rows"}


def results(folder: Path) -> Path:
    rows = [
        row("presence", 87.5, "%", 85, questions=200, chance=50),
        row("first token", 0.31, "s", 0.2, at_least=False),
        row("speech", None, "%", 50, why="no whisper here"),
        row("frames", 12_345),
    ]
    return write_results("basics", rows, command="vlm eval basics", seed=3, setting={"model": "tiny"}, out_dir=folder)


def test_a_results_file_is_complete(tmp_path: Path) -> None:
    content = read_results(results(tmp_path / "new" / "folder"))
    assert set(content) >= KEYS
    assert (content["command"], content["seed"], content["setting"]) == ("vlm eval basics", 3, {"model": "tiny"})
    assert [r["holds"] for r in content["rows"]] == [True, False, None, None]
    assert content["rows"][0]["target"] == ">= 85"
    assert content["rows"][0]["setting"] == {"questions": 200, "chance": 50}
    assert {"python", "torch", "transformers", "numpy", "vlm"} <= set(content["versions"])
    assert content["versions"]["vlm"] != "not installed"


def test_the_machine_is_described_without_names_or_paths() -> None:
    import platform

    facts = machine()
    assert facts["cores"] >= 1
    assert facts["memory_gb"] is None or facts["memory_gb"] > 0.1
    assert platform.node() not in json.dumps(facts) or len(platform.node()) < 3
    assert "/" not in str(facts["system"])


@pytest.mark.parametrize(
    ("value", "target", "expected"),
    [
        (0.85, ">= 0.85", True),
        (0.8499, ">= 0.85", False),
        (0.85, "<= 0.85", True),
        (1.0, "< 1", False),
        (356, "== 356", True),
        (5e-6, "<= 1e-5", True),
        (None, ">= 1", None),
        (1.0, None, None),
    ],
)
def test_verdicts(value: float | None, target: str | None, expected: bool | None) -> None:
    assert holds(value, target) is expected


def test_a_verdict_cannot_be_typed(tmp_path: Path) -> None:
    typed = [
        {"name": "a", "value": 1.0, "target": ">= 2", "holds": True},
        {"claim": "b", "ours": 3.0, "paper": "about 3", "holds": True},
    ]
    path = write_results("x", typed, command="c", seed=0, out_dir=tmp_path)
    assert [r["holds"] for r in read_results(path)["rows"]] == [False, None]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no rows"),
        ([{"value": 1}], "neither 'name' nor 'claim'"),
        ([row("a", math.nan)], "value nan"),
        ([row("a", 1.0, noise=math.inf)], "not finite"),
    ],
)
def test_nothing_is_written_for_bad_rows(tmp_path: Path, rows: list[dict[str, object]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        write_results("x", rows, command="c", seed=0, out_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_targets_that_compare_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="good"):
        holds(1.0, "good")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("text", ["", "[1]", '{"rows": 3}', "{"])
def test_other_files_are_no_results(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"x\.json"):
        read_results(path)


def test_wilson_intervals() -> None:
    low, high = wilson(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)  # textbook value
    assert wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert wilson(10, 10) == (pytest.approx(0.7225, abs=1e-4), 1.0)
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(DataError, match="11 successes of 10"):
        wilson(11, 10)


def test_wilson_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    hits = [low <= 0.8 <= high for low, high in (wilson(int(k), 60) for k in rng.binomial(60, 0.8, size=2000))]
    assert 0.92 < np.mean(hits) < 0.98


def test_markdown_table(tmp_path: Path) -> None:
    table = markdown_table(results(tmp_path)).splitlines()
    assert table[0] == "| what | value | target | holds | setting |"
    assert table[2] == "| presence | 87.5 % | ≥ 85 | yes | questions 200, chance 50 |"
    assert table[3] == "| first token | 0.31 s | ≤ 0.2 | **no** |  |"
    assert table[4] == "| speech | – | ≥ 50 |  | why no whisper here |"
    assert table[5] == "| frames | 12,345 |  |  |  |"
    assert len(markdown_table(results(tmp_path), only="^pres").splitlines()) == 3


def test_plots_are_pictures(tmp_path: Path) -> None:
    grids = {"free": [[100, 50], [0, math.nan]], "forced": np.full((2, 2), 75.0)}
    heat = heat_maps(tmp_path / "h.png", grids, rows=["0", "1"], columns=["8", "16"], labels=("depth", "frames"))
    rows = [row("a", 80, "%", 85, chance=50, low=70, high=88), row("b", None, "%"), row("c", 20, "%")]
    bars = bar_chart(tmp_path / "b.png", rows, title="basics")
    for path in (heat, bars):
        picture = np.asarray(Image.open(path).convert("RGB"))
        assert picture.shape[0] > 150
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
    colours = {tuple(c) for c in np.asarray(Image.open(heat).convert("RGB")).reshape(-1, 3)[::7].tolist()}
    assert any(g > 100 and r < 60 for r, g, _ in colours), "100 % is green"
    assert any(r > 150 and g < 60 for r, g, _ in colours), "0 % is red"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.png", "h.png"]


def test_matplotlib_is_loaded_only_to_draw() -> None:
    code = "import sys, eval.report, eval.niah, eval.spans; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"
