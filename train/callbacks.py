"""What watches a run: progress bar, history file, trackers. A callback changes nothing; all of them live in the first
process.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from train.stages import Recipe, Stage

log = logging.getLogger(__name__)

Record = dict[str, Any]


class Callback:
    """Hooks of a run; each does nothing unless overridden."""

    def on_stage(self, stage: Stage, step: int) -> None:
        """A stage begins, or goes on at ``step``."""

    def on_step(self, stage: Stage, record: Record) -> None:
        """An optimizer step is done. ``record``: step (of the stage), global_step, loss, lr, grad_norm, tokens_per_s,
        ...
        """

    def on_save(self, path: Path) -> None:
        """A checkpoint was written."""

    def on_end(self) -> None:
        """The run is over, for whatever reason."""


@dataclass
class ProgressBar(Callback):
    """One bar per stage: loss, learning rate, tokens per second."""

    bar: Any = None

    def on_stage(self, stage: Stage, step: int) -> None:
        from tqdm.auto import tqdm

        self.on_end()
        self.bar = tqdm(
            total=stage.steps, initial=step, desc=stage.name, unit="step", dynamic_ncols=True, smoothing=0.1
        )

    def on_step(self, stage: Stage, record: Record) -> None:
        text = f"loss {record['loss']:.4f}  lr {record['lr']:.2e}  {record['tokens_per_s']:,.0f} tok/s"
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(record["step"] - self.bar.n)

    def on_end(self) -> None:
        if self.bar is not None:
            self.bar.close()


@dataclass
class History(Callback):
    """One JSON line per record in ``OUT/history.jsonl``. After a crash the steps done twice appear twice; they are
    equal.
    """

    path: Path
    file: TextIO | None = field(default=None, repr=False)

    def on_step(self, stage: Stage, record: Record) -> None:
        try:
            if self.file is None:
                self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (open for the whole run)
                if _ends_torn(self.path):
                    self.file.write("\n")
            self.file.write(json.dumps(_finite(record)) + "\n")
            self.file.flush()
        except OSError as error:  # a full disk: the checkpoint will say so; a log is not worth the run
            log.warning("step %s is not in %s: %s", record["step"], self.path, error)

    def on_end(self) -> None:
        if self.file is not None:
            with contextlib.suppress(OSError):  # what a full disk did not take; said already
                self.file.close()
            self.file = None


@dataclass
class Trackers(Callback):
    """Sends records to the trackers of accelerate."""

    accelerator: Any
    recipe: Recipe

    def __post_init__(self) -> None:
        self.accelerator.init_trackers("train", config={"recipe": json.dumps(self.recipe.as_dict())})

    def on_step(self, stage: Stage, record: Record) -> None:
        values = {f"train/{k}": v for k, v in record.items() if isinstance(v, int | float) and k != "global_step"}
        self.accelerator.log(values, step=record["global_step"])

    def on_end(self) -> None:
        for tracker in self.accelerator.trackers:
            tracker.finish()


def _ends_torn(path: Path) -> bool:
    """Whether a killed process left half a line."""
    with open(path, "rb") as file:
        return file.seek(0, 2) > 0 and file.seek(-1, 2) >= 0 and file.read(1) != b"\n"


def _finite(record: Record) -> Record:
    """NaN and infinity are no JSON; they become words."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
