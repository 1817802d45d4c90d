"""Several processes measure one grid: each appends what it has measured to a file of its own, all of them read all files.

A line is one needle in one cell. It is on the disk before the next is begun, so a run that was killed goes on where it stopped, with
any number of processes. Who measures what follows from the number of the line in the plan and the process's rank alone; the
processes never talk to each other (`RANK` and `WORLD_SIZE` are what torchrun and accelerate set).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from eval.niah_cells import Cell
from vlm.errors import ConfigError, DataError

PATIENCE = 600.0
"""Seconds for which rank 0 waits for a process that is not running (it may still be loading its model)."""

_GRACE = 2.0  # seconds; rank 0 may just be looking whether this process runs

Unit = tuple[int, float, int]  # frames, depth, needle


@dataclass(frozen=True)
class Ranks:
    """This process among those that measure together.

    Attributes:
        rank: 0 writes the results.
        world: How many there are.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def here(cls) -> Ranks:
        """From the environment; one process if it says nothing.

        Raises:
            ConfigError: `RANK` and `WORLD_SIZE` do not fit together.
        """
        rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
            raise ConfigError(
                f"RANK={rank} and WORLD_SIZE={world} are not a process number below a number of processes"
            )
        return cls(int(rank), int(world))


@dataclass
class Parts:
    """The files of one measurement.

    Attributes:
        folder: Holds one file per rank; its name says which measurement it is, so that two never mix.
        ranks: Which process this is.
    """

    folder: Path
    ranks: Ranks
    _lock: Any = field(default=None, repr=False)

    def __enter__(self) -> Parts:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._lock_of(self.ranks.rank))
        try:
            self._lock.acquire(timeout=_GRACE)
        except Timeout as error:
            raise ConfigError(
                f"{self.folder.name}: another process with rank {self.ranks.rank} is measuring the same; wait for it, or "
                "give each process its RANK and the common WORLD_SIZE"
            ) from error
        _drop_torn_line(self._own)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if not any(self.folder.glob("rank*.jsonl")):  # there was nothing left to measure
            self._lock_of(self.ranks.rank).unlink(missing_ok=True)
            with suppress(OSError):
                self.folder.rmdir()

    @property
    def _own(self) -> Path:
        return self.folder / f"rank{self.ranks.rank}.jsonl"

    def _lock_of(self, rank: int) -> Path:
        return self.folder / f"rank{rank}.lock"

    def add(self, needle: int, cell: Cell) -> None:
        """Write down one needle's outcomes."""
        line = json.dumps({"needle": needle, **cell.to_json()})
        with self._own.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> dict[Unit, Cell]:
        """What all processes, of this run and earlier ones, have measured so far."""
        found: dict[Unit, Cell] = {}
        for path in sorted(self.folder.glob("rank*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):
                    needle, cell = _parsed(line, path)
                    found[cell.frames, cell.depth, needle] = cell
        return found

    def clear(self) -> None:
        """Forget everything."""
        for path in self.folder.glob("rank*.jsonl"):
            path.unlink()

    def remove(self) -> None:
        """Remove the folder; the results are written elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def wait(self, complete: Callable[[dict[Unit, Cell]], bool], *, patience: float = PATIENCE) -> dict[Unit, Cell]:
        """Everything, when all processes are done.

        Raises:
            DataError: Another process has not been running for ``patience`` seconds and its part is missing.
        """
        seen = time.monotonic()
        while not complete(found := self.read()):
            others = [r for r in range(self.ranks.world) if r != self.ranks.rank]
            seen = time.monotonic() if any(self._runs(r) for r in others) else seen
            if time.monotonic() - seen > patience:
                raise DataError(
                    f"{self.folder.name}: a process of the {self.ranks.world} has stopped before its part was done; start "
                    "the command again, what is measured is kept"
                )
            time.sleep(0.2)
        return found

    def _runs(self, rank: int) -> bool:
        lock = FileLock(self._lock_of(rank))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False


def _parsed(line: str, path: Path) -> tuple[int, Cell]:
    try:
        content = json.loads(line)
        return int(content["needle"]), Cell.from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path.parent.name}/{path.name} has a line that is not a measurement; delete the file"
        ) from error


def _drop_torn_line(path: Path) -> None:
    """A process was killed while it wrote: cut the file after its last whole line."""
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
