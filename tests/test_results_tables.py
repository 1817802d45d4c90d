"""The tables of the README and the docs say what the results files say."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


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


def test_rows_become_cells(tables: ModuleType, tmp_path: Path) -> None:
    rows = [
        {"name": "span mIoU", "value": 0.61234, "unit": "", "target": 0.6, "setting": "30 s", "holds": True},
        {"claim": "a | b", "ours": 12, "unit": "s", "paper": None, "setting": "", "holds": False},
    ]
    result = {"command": "vlm eval x", "seed": 3, "date": "2026-01-02", "machine": {"cores": 2}, "rows": rows}
    (tmp_path / "x.json").write_text(json.dumps(result))
    text = tables.render("before\n<!-- results:x -->\nold\n<!-- /results -->\nafter\n", tmp_path)
    assert "| span mIoU | 0.612 | 0.6 | yes | 30 s |" in text
    assert "| a \\| b | 12 s | – | **no** |  |" in text
    assert "`vlm eval x`, seed 3, 2026-01-02, cores 2." in text
    assert "old" not in text
    assert text.startswith("before\n") and text.endswith("<!-- /results -->\nafter\n")


def test_a_missing_measurement_is_said(tables: ModuleType, tmp_path: Path) -> None:
    text = tables.render("<!-- results:gone -->\n<!-- /results -->", tmp_path)
    assert "Not measured yet (`docs/results/gone.json`)." in text
    assert tables.render(text, tmp_path) == text
