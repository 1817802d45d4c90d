"""``vlm data check``: what is printed is what the processor makes of the data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from train.check import check
from vlm.cli import main
from vlm.errors import ConfigError, DataError

CLIP = Path(__file__).parents[2] / "demo/examples/shapes.mp4"


@pytest.fixture
def rtl_file(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    shutil.copy(CLIP, tmp_path / "videos" / "v_one.mp4")
    records = {
        f"v_{name}": {"duration": 20.0, "QA": [{"q": "When does it end?", "a": "<5.0> <10.0> There it ends."}]}
        for name in ("one", "two")
    }
    (tmp_path / "train.json").write_text(json.dumps(records), encoding="utf-8")
    return tmp_path / "train.json"


def test_a_file_is_shown_as_the_model_reads_it(rtl_file: Path) -> None:
    with pytest.warns(UserWarning, match="1 of 2 videos"):
        lines = list(check(rtl_file, format="rtl", media=rtl_file.parent / "videos"))
    text = "\n".join(lines)
    assert "train.json: 1 conversations" in text and "missing 1; missing: v_two" in text
    assert "When does it end?" in next(x for x in lines if x.startswith("  read"))
    target = next(x for x in lines if x.startswith("  target"))
    assert "There it ends." in target and target.count("<t") == 2
    assert "v_one.mp4" in text and "true    5.00 to 10.00 s" in text
    times = next(x for x in lines if x.startswith("  times")).split()
    assert float(times[1]) == pytest.approx(5.0, abs=0.2) and float(times[3]) == pytest.approx(10.0, abs=0.2)


def test_a_recipe_is_shown_stage_by_stage() -> None:
    pytest.importorskip("timm")
    lines = list(check("longvila_nano", stage="sft", count=2, model="nano"))
    assert lines[0].startswith("stage sft") and sum(x.startswith("\n") for x in lines) == 2
    assert any(x.startswith("  target") for x in lines)


def test_misuse_is_explained(rtl_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="stage='x' is not one of align"):
        list(check("longvila_nano", stage="x"))
    with pytest.raises(ConfigError, match="count=0"):
        list(check("longvila_nano", count=0))
    (rtl_file.parent / "v_a.mp4").touch()
    (rtl_file.parent / "empty.json").write_text('{"v_a": {"duration": 3, "timestamps": [], "sentences": []}}')
    with pytest.raises(DataError, match="nothing to ask about"):
        list(check(rtl_file.parent / "empty.json", format="captions"))
    assert main(["data", "mend", "tiny"]) != 0
    assert "check, rtl" in capsys.readouterr().err
