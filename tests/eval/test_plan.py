"""The cost model beside published figures: what is within the band holds, what is not has a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval import run_task
from eval.plan import HIGH, LOW, points, rows
from eval.report import read_results
from vlm.errors import ConfigError


def test_every_published_point_is_within_the_band_or_has_a_reason() -> None:
    found = rows()
    assert len(found) == len(list(points())) == 18
    for r in found:
        assert r["holds"] is (LOW <= r["value"] <= HIGH), r["name"]
        assert ("reason" in r["setting"]) is not r["holds"], r["name"]
        assert r["setting"].get("reason") != "not known", r["name"]
    outside = [r["name"] for r in found if not r["holds"]]
    assert outside == ["step, 64 x H100, zigzag ring, 578 K tokens"]


def test_the_task_writes_a_results_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_task("plan", model=None, limit=2, out=tmp_path, options=[])
    result = read_results(tmp_path / "plan.json")
    assert len(result["rows"]) == 2 and result["setting"]["constants"]["ring"] > 0
    first = result["rows"][0]
    predicted, published = (float(first["setting"][k].split()[0]) for k in ("predicted", "published"))
    assert first["value"] == pytest.approx(predicted / published, rel=0.01)  # two decimals are shown
    assert "published 2.06 s" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="takes no model"):
        run_task("plan", model="smol", limit=None, out=tmp_path, options=[])
