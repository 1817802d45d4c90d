"""Sets the stage for the loop: process group, lock, signals, watchers."""

from __future__ import annotations

import contextlib
import datetime
import logging
import re
from pathlib import Path
from typing import Any

from train.callbacks import Callback, History, ProgressBar, Trackers
from train.checkpoint import CheckpointStore
from train.loop import Trainer
from train.signals import EXIT_PREEMPTED, Preempted, Preemption
from train.stages import Recipe
from vlm.errors import ConfigError, MissingDependencyError, TrainingError

LOST_PROCESS = re.compile(r"gloo|NCCL|ProcessGroup|[Cc]onnection|[Tt]imed? ?out")

log = logging.getLogger(__name__)


def run(recipe: Recipe, *, patience: float = 5.0) -> int:
    """Train ``recipe``; returns the exit code (0, or 75 after SIGTERM or SIGINT).

    Args:
        recipe: What to do.
        patience: Seconds after a signal until a checkpoint is written without waiting for the current step.

    Raises:
        ConfigError: ``resume=false`` and the folder has checkpoints, or a tracker is unknown.
        TrainingError: Another trainer uses the folder, or training cannot go on.
    """
    out = Path(recipe.out)
    store = CheckpointStore(out / "checkpoints", keep=recipe.keep)
    if not recipe.resume and store.versions():
        raise ConfigError(f"resume=false, but {store.folder} has checkpoints; set out= to another folder")
    accelerator = build_accelerator(recipe)
    first = accelerator.is_main_process
    with store.lock() if first else contextlib.nullcontext(), Preemption(patience) as preemption:
        if first:
            store.clean()
        callbacks = build_callbacks(recipe, accelerator)
        trainer = Trainer(recipe, accelerator, callbacks, store, preemption)
        try:
            trainer.run()
        except Preempted:
            log.warning("stopped by a signal; saved in %s. The same command goes on from there", store.folder)
            return EXIT_PREEMPTED
        except RuntimeError as error:
            if accelerator.num_processes == 1 or not LOST_PROCESS.search(str(error)):
                raise
            at = f"process {accelerator.process_index}, stage {trainer.progress.stage}, step {trainer.progress.step}"
            raise TrainingError(
                f"{at}: another process has ended or did not answer for {recipe.timeout:g} s (timeout=). Start again: "
                f"the run goes on from {store.folder}. The communication library said: {str(error).splitlines()[0]}"
            ) from error
        finally:
            for callback in callbacks:
                callback.on_end()
    if accelerator.num_processes > 1:
        accelerator.state.destroy_process_group()
    return 0


def build_accelerator(recipe: Recipe) -> Any:
    """accelerate's `Accelerator` for this recipe: device, process group with a timeout, trackers."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    known = _known_trackers()
    for name in recipe.report_to:
        if name not in known:
            raise ConfigError(f"report_to: no tracker {name!r}; accelerate knows {', '.join(known)}")
    if "tensorboard" in recipe.report_to:
        try:
            import tensorboard  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError(
                "tensorboard", "train", "report_to=[tensorboard] (report_to=[] turns it off)"
            ) from error
    return Accelerator(
        cpu=recipe.device == "cpu" or not torch.accelerator.is_available(),
        log_with=recipe.report_to or None,
        project_dir=recipe.out,
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=datetime.timedelta(seconds=recipe.timeout)),
        ],
    )


def build_callbacks(recipe: Recipe, accelerator: Any) -> list[Callback]:
    """The watchers of the first process; the others have none."""
    if not accelerator.is_main_process:
        return []
    callbacks: list[Callback] = [History(Path(recipe.out) / "history.jsonl")]
    if recipe.progress:
        callbacks.append(ProgressBar())
    if recipe.report_to:
        callbacks.append(Trackers(accelerator, recipe))
    return callbacks


def _known_trackers() -> list[str]:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    return sorted(LOGGER_TYPE_TO_CLASS)
