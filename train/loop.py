"""The training loop: a curriculum of stages on accelerate, resumable to the bit.

    each stage: plugins.prepare ─► freeze ─► [ batch ─► loss ─► backward ─► finite? ─► AdamW ] × steps ─► plugins.finish

The loss is per target token of the whole optimizer step: summed over all processes and micro-batches, divided by their
targets. Everything random is seeded from (seed, stage, step, process) at every step, so a checkpoint needs no generator
states: weights, optimizer, and a few numbers.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from train.build import build_collate, build_dataset, build_model
from train.callbacks import Callback
from train.checkpoint import Checkpoint, CheckpointStore
from train.data import Batch, Encode, MicroBatches, Order, Prefetcher
from train.optim import build_optimizer, lr_factor
from train.prepare import (
    divides_by_item_count,
    freeze,
    freeze_report,
    learning_rates,
    set_gradient_checkpointing,
)
from train.sharded import gathered
from train.shared import Sharing
from train.signals import Preempted, Preemption
from train.stages import Recipe, Stage
from train.state import (
    Progress,
    changed,
    check_same_run,
    export_final,
    fingerprints,
    live_buffers,
    load_weights,
    seed_everything,
    snapshot,
)
from vlm.errors import TrainingError
from vlm.plugins import build_plugin
from vlm.plugins.parts import load_parts

log = logging.getLogger(__name__)


@dataclass
class Trainer:
    """Runs a recipe from wherever its folder stands.

    Attributes:
        recipe: What to do.
        accelerator: Device and processes.
        callbacks: Watchers; only the first process has any.
        store: Checkpoints of this run.
        preemption: Asked between micro-batches whether to save and leave.
    """

    recipe: Recipe
    accelerator: Any
    callbacks: list[Callback]
    store: CheckpointStore
    preemption: Preemption
    progress: Progress = field(default_factory=Progress)
    trained: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Train every stage, then export.

        Raises:
            Preempted: SIGTERM or SIGINT arrived; a checkpoint was written.
            TrainingError: Loss not finite, disk full, too many unusable samples, ...
        """
        while not self._run():
            pass

    def _run(self) -> bool:
        """Go on from the newest checkpoint; False if a stage has left a model that must be made anew."""
        seed_everything(self.recipe.seed)
        (self.model, self.processor), self.trained = build_model(self.recipe), set()
        if self.recipe.init is not None:
            self.model, self.trained = load_parts(self.model, Path(self.recipe.init))
        with self.accelerator.main_process_first():
            found = self.store.load(set_aside=self.accelerator.is_main_process)
        if found is not None:
            check_same_run(self.recipe, found)
            log.info("going on from %s", found.path)
        for number, stage in enumerate(self.recipe.stages):
            if not self._stage(number, stage, found if found is not None and number <= found.stage else None):
                return False
            if stage.name == self.recipe.until:
                break
        if self.accelerator.is_main_process:
            export_final(self.recipe, self.model, self.processor, self.trained, number + 1)
        self.accelerator.wait_for_everyone()
        return True

    # -- one stage ---------------------------------------------------------------------------------------------------

    def _stage(self, number: int, stage: Stage, found: Checkpoint | None) -> bool:
        """Train one stage; one that ``found`` has behind it is only given its structure (plugins). False: its weights are spread."""
        seed_everything(self.recipe.seed, number)
        self.plugins = [build_plugin(p.call, p.args) for p in stage.all_plugins]
        self._change_by("prepare")
        if (found is None or found.stage == number) and self._train(number, stage, found) and self.sharing.sharded:
            return False
        self._change_by("finish")
        return True

    def _change_by(self, hook: str) -> None:
        """Let each plugin change the model; what it changed counts as trained, so that it is saved."""
        for plugin in self.plugins:
            before = fingerprints(self.model)
            self.model = getattr(plugin, hook)(self.model)
            self.trained |= changed(before, fingerprints(self.model), self.trained)

    def _train(self, number: int, stage: Stage, found: Checkpoint | None) -> bool:
        """The steps of a stage; whether there were any to do."""
        rates = learning_rates(self.model, stage)
        freeze(self.model, rates)
        set_gradient_checkpointing(self.model, stage.gradient_checkpointing)
        self.trained |= set(rates) | live_buffers(self.model)
        self.progress = self.progress.next_stage(number) if found is None else Progress(**found.state["progress"])
        if self.accelerator.is_main_process:
            log.info("stage %s: %d of %d steps to go", stage.name, stage.steps - self.progress.step, stage.steps)
            log.info("%s", "\n".join(freeze_report(self.model, rates)))
        if found is not None:
            self.trained |= load_weights(self.model, found)
        if self.progress.step >= stage.steps:
            return False
        self.sharing = Sharing.of(stage, self.model, self.accelerator)
        self.wrapped, self.optimizer = self.sharing.wrap(lambda: build_optimizer(self.model, rates, stage))
        self.names = {id(p): name for name, p in self.model.named_parameters()}
        if found is not None:
            self.sharing.load_optimizer(self.optimizer, self.names, found.tensors["optimizer"])
        self.counts_items = divides_by_item_count(self.model)
        self._steps(number, stage)
        self.sharing.undo()
        self.wrapped = self.optimizer = None
        self.accelerator.free_memory()
        return True

    def _batches(self, number: int, stage: Stage) -> Prefetcher:
        dataset = build_dataset(stage, seed=self.recipe.seed, processor=self.processor)
        source = MicroBatches(
            dataset,
            Order.of(dataset, (self.recipe.seed, number), stage),
            build_collate(stage, self.processor),
            stage.batch_size,
            stage.grad_accum,
            **self.sharing.data_place(),
            encode=None if self.processor is None else Encode(self.processor, stage.frames, self.sharing.mesh.size > 1),
            max_length=stage.seq_len,
        )
        first, last = self.progress.step * stage.grad_accum, stage.steps * stage.grad_accum
        return Prefetcher(source, first, last, workers=self.recipe.workers, ahead=self.recipe.prefetch)

    def _steps(self, number: int, stage: Stage) -> None:
        for callback in self.callbacks:
            callback.on_stage(stage, self.progress.step)
        batches = self._batches(number, stage)
        self.preemption.rescue = None if self.sharing.sharded else lambda: self._save(stage)
        try:
            stream = iter(batches)
            while self.progress.step < stage.steps:
                began = time.perf_counter()
                record = self._step(stage, [next(stream) for _ in range(stage.grad_accum)])
                record["tokens_per_s"] = record["tokens"] / (time.perf_counter() - began)
                self._after_step(stage, record)
        except Preempted:
            self._save(stage)
            raise
        finally:
            self.preemption.rescue = None
            batches.close()

    def _after_step(self, stage: Stage, record: dict[str, Any]) -> None:
        step, last = self.progress.step, self.progress.step == stage.steps
        if step % self.recipe.log_every == 0 or last:
            for callback in self.callbacks:
                callback.on_step(stage, record)
        if step % self.recipe.save_every == 0 or last:
            self._save(stage)

    # -- one optimizer step ------------------------------------------------------------------------------------------

    def _step(self, stage: Stage, micro: list[Batch]) -> dict[str, Any]:
        """Forward and backward over the micro-batches, then one update; returns the log record."""
        targets, tokens, bad = self._agree(stage, micro)
        seed_everything(self.recipe.seed, self.progress.stage, self.progress.step, self.accelerator.process_index)
        losses: dict[str, float] = {}
        for k, batch in enumerate(micro):
            if self.preemption.requested and self.accelerator.num_processes == 1:
                self.optimizer.zero_grad()
                raise Preempted
            with self.sharing.syncing(self.wrapped, last=k == len(micro) - 1):
                self._forward_backward(stage, batch, targets, losses)
        names = list(losses)
        losses = dict(zip(names, self.sharing.total(losses.values(), torch.float64), strict=True))
        norm = self.sharing.clip(self.optimizer, stage.grad_clip or math.inf)
        finite = math.isfinite(losses["loss"]) and math.isfinite(norm)
        if not finite:
            self._not_finite(stage, micro, losses["loss"], norm)
        lr = self._update(stage, finite)
        self.progress.add(tokens=tokens, targets=targets, bad=bad, skipped=int(not finite))
        at = {"stage": stage.name, "step": self.progress.step, "global_step": self.progress.global_step}
        return {**at, **losses, "lr": lr, "grad_norm": norm, "tokens": tokens, "skipped": self.progress.skipped}

    def _agree(self, stage: Stage, micro: list[Batch]) -> tuple[int, int, int]:
        """Targets, tokens and unusable samples of the step over all processes, which also leave together here."""
        counts = [*self.sharing.counts(micro), int(self.preemption.requested)]
        targets, tokens, bad, stop = self.sharing.total(counts, torch.int64)
        if stop:
            raise Preempted
        reasons = [reason for batch in micro for reason in batch.bad]
        for reason in reasons:
            log.warning("unusable, replaced by its neighbour: %s", reason)
        allowed = int(stage.max_bad * stage.steps * stage.batch_size)
        if self.progress.bad + bad > allowed:
            first = reasons[0] if reasons else "seen by another process"
            raise TrainingError(
                f"stage {stage.name}, step {self.progress.step}: {self.progress.bad + bad} unusable samples, {allowed} "
                f"allowed by max_bad={stage.max_bad}; {first}"
            )
        return targets, tokens, bad

    def _forward_backward(self, stage: Stage, batch: Batch, targets: int, losses: dict[str, float]) -> None:
        """One micro-batch; adds its share of each loss (sum over its targets / ``targets``) to ``losses``."""
        from accelerate.utils import send_to_device

        device = self.accelerator.device
        inputs = send_to_device(self.sharing.inputs(batch.inputs), device)
        if self.counts_items:
            inputs["num_items_in_batch"] = torch.tensor(targets, device=device)
        share = batch.targets / targets
        with torch.autocast(device.type, torch.bfloat16, enabled=stage.dtype == "bf16"):
            outputs = self.wrapped(**inputs)
            total = outputs.loss if self.counts_items else outputs.loss * share
            parts = {"loss": total}
            for plugin in self.plugins:
                for name, value in plugin.losses(inputs, outputs).items():
                    parts[f"loss_{name}"] = value * share
                    total = total + value * share
        parts["loss"] = total
        for name, value in parts.items():
            losses[name] = losses.get(name, 0.0) + float(value.detach())
        self.sharing.backward(self.wrapped, total)

    def _update(self, stage: Stage, finite: bool) -> float:
        """The optimizer step, unless the gradients are to be thrown away; returns the largest learning rate."""
        factor = lr_factor(stage, self.progress.step)
        with self.preemption.updating:
            if finite:
                for group in self.optimizer.param_groups:
                    group["lr"] = group["base_lr"] * factor
                self.optimizer.step()
            self.optimizer.zero_grad()
            self.progress.step += 1
            self.progress.global_step += 1
        return factor * max(group["base_lr"] for group in self.optimizer.param_groups)

    def _not_finite(self, stage: Stage, micro: list[Batch], loss: float, norm: float) -> None:
        """Name the samples of the step on all processes; stop, or leave the weights as they are and go on."""
        from accelerate.utils import gather_object

        self.optimizer.zero_grad()
        ids = gather_object([i for batch in micro for i in batch.ids])
        where = f"stage {stage.name}, step {self.progress.step}"
        what = f"{where}: loss {loss}, gradient norm {norm}, samples {', '.join(ids)}"
        if self.recipe.nan == "skip":
            log.warning("%s. Update skipped (nan=skip)", what)
            return
        self._save(stage)
        raise TrainingError(f"{what}. The weights are those before this step. Mend the data or set nan=skip")

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _save(self, stage: Stage) -> None:
        """Write a checkpoint: the first process does; where weights are spread, all come here."""
        if not ((first := self.accelerator.is_main_process) or self.sharing.sharded):
            return
        with self.preemption.updating:
            whole = snapshot(self.model, None if self.recipe.save == "all" else self.trained)
            weights = gathered(self.sharing.weights(self.optimizer, self.model, whole), keep=first)
            optimizer = gathered(self.sharing.optimizer_tensors(self.optimizer, self.names), keep=first)
            state: dict[str, Any] = {"progress": asdict(self.progress), "recipe": self.recipe.as_dict()}
            state["trained"] = sorted(self.trained)
            if not first:
                return
            path = self.store.save(stage.name, Checkpoint(state, {"weights": weights, "optimizer": optimizer}))
        for callback in self.callbacks:
            callback.on_save(path)
