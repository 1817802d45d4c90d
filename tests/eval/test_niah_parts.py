"""Parts of a measurement: torn lines, locks, ranks from the environment, processes that stop."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval.niah_cells import Cell
from eval.niah_parts import Parts, Ranks
from vlm.errors import ConfigError, DataError


def cell(depth: float) -> Cell:
    return Cell(8, depth, {"retrieve": ("1",)}, {"retrieve": ("0",)}, {"retrieve": 0.25}, 9)


def test_what_was_written_is_read_by_every_rank(tmp_path: Path) -> None:
    with Parts(tmp_path, Ranks(0, 2)) as zero, Parts(tmp_path, Ranks(1, 2)) as one:
        zero.add(0, cell(0.0))
        one.add(1, cell(0.5))
        found = {(8, 0.0, 0): cell(0.0), (8, 0.5, 1): cell(0.5)}
        assert zero.read() == one.read() == found
    with Parts(tmp_path, Ranks()) as alone:
        assert alone.read() == found
        alone.clear()
        assert alone.read() == {}
        alone.remove()
    assert not tmp_path.exists()


def test_a_torn_line_is_dropped_and_the_file_goes_on(tmp_path: Path) -> None:
    with Parts(tmp_path, Ranks()) as parts:
        parts.add(0, cell(0.0))
        parts.add(1, cell(0.0))
    own = tmp_path / "rank0.jsonl"
    whole = own.read_bytes()
    own.write_bytes(whole[:-7])
    with Parts(tmp_path, Ranks(1, 2)) as other:
        assert list(other.read()) == [(8, 0.0, 0)], "another process does not mend it, it may still be written"
    with Parts(tmp_path, Ranks()) as parts:
        parts.add(1, cell(0.0))
        assert own.read_bytes() == whole
        assert len(parts.read()) == 2


def test_a_line_that_is_no_measurement_is_named(tmp_path: Path) -> None:
    (tmp_path / "rank3.jsonl").write_text('{"needle": 1}\n')
    with Parts(tmp_path, Ranks()) as parts, pytest.raises(DataError, match=r"rank3\.jsonl"):
        parts.read()


def test_a_process_with_nothing_to_do_leaves_nothing_behind(tmp_path: Path) -> None:
    with Parts(tmp_path / "parts", Ranks(1, 2)) as parts:
        assert parts.read() == {}
    assert list(tmp_path.iterdir()) == []


def test_two_processes_of_one_rank_are_refused(tmp_path: Path) -> None:
    with Parts(tmp_path, Ranks()), pytest.raises(ConfigError, match="rank 0 is measuring"), Parts(tmp_path, Ranks()):
        pass


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("x", "2"), ("0", "0"), ("-1", "2")])
def test_ranks_come_from_the_environment(rank: str, world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Ranks.here() == Ranks(0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Ranks.here() == Ranks(1, 4)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(ConfigError, match=f"RANK={rank}"):
        Ranks.here()


def test_rank_0_waits_for_what_others_write_and_not_for_the_dead(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from eval.niah_parts import *; from tests.eval.test_niah_parts import cell\n"
        "with Parts(Path(sys.argv[1]), Ranks(1, 2)) as parts:\n"
        "    parts.add(0, cell(0.0)); time.sleep(1.5); parts.add(1, cell(0.0))\n"
    )
    with Parts(tmp_path, Ranks(0, 2)) as parts:
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": "."})
        try:
            assert len(parts.wait(lambda found: len(found) == 1, patience=60)) == 1
            assert len(parts.wait(lambda found: len(found) == 2, patience=0.5)) == 2, "it lives, though it takes longer"
            began = time.monotonic()
            with pytest.raises(DataError, match="has stopped before its part was done"):
                parts.wait(lambda found: len(found) == 3, patience=0.5)
            assert time.monotonic() - began < 30
        finally:
            child.wait(timeout=60)
