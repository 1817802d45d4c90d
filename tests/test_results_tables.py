"""The tables of the README and the docs say what the results files say."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from eval.report import row, write_results


@pytest.fixture(scope="module")
def tables(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_tables", root / "scripts/results_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_table_is_up_to_date(root: Path) -> None:
    command = [sys.executable, str(root / "scripts/results_tables.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"run: python scripts/results_tables.py\n{done.stdout}{done.stderr}"


def test_a_measurement_becomes_a_table(tables: ModuleType, tmp_path: Path) -> None:
    rows = [row("span mIoU", 0.61, target=0.6, seconds=30), row("word errors", 30.0, "%", target=20.0, at_least=False)]
    write_results("x", rows, command="vlm eval x", seed=3, out_dir=tmp_path)
    text = tables.render("before\n<!-- results:x -->\nstale words\n<!-- /results:x -->\nafter\n", tmp_path)
    lines = text.splitlines()
    assert lines[:2] == ["before", "<!-- results:x -->"]
    assert lines[-2:] == ["<!-- /results:x -->", "after"]
    assert "stale words" not in text
    part = tables.render("<!-- results:x ^span -->\n<!-- /results:x -->\n", tmp_path)
    assert part.startswith("<!-- results:x ^span -->\n| what") and "span mIoU" in part and "word errors" not in part
    assert any("span mIoU" in line and "0.61" in line and "yes" in line for line in lines)
    assert any("word errors" in line and "30" in line and "**no**" in line for line in lines)
    assert "Measured by `vlm eval x`, seed 3, " in text
    assert tables.render(text, tmp_path) == text


def test_a_missing_measurement_is_said(tables: ModuleType, tmp_path: Path) -> None:
    text = tables.render("<!-- results:gone -->\n<!-- /results:gone -->", tmp_path)
    assert "Not measured yet (`docs/results/gone.json`)." in text
    assert tables.render(text, tmp_path) == text
