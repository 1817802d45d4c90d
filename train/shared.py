"""What processes share in a stage: sequences (MM-SP), weights (FSDP2), or neither (DDP). Who gets which data, and what wraps the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from train.data import Batch
from train.optim import load_optimizer_tensors, optimizer_tensors
from train.prepare import keep_loss_connected
from train.sharded import shard
from train.stages import Stage
from train.zero import Zero, read_config
from vlm.errors import ConfigError
from vlm.parallel.mesh import Mesh, build_mesh
from vlm.parallel.model import SequenceParallel
from vlm.parallel.plan import AttentionShape, choose

log = logging.getLogger(__name__)


@dataclass
class Sharing:
    """How the processes of a stage share their sequences and weights.

    Attributes:
        core: What is trained: the model, or a `SequenceParallel` around it in a stage that shares or packs.
        accelerator: Device and processes.
        mesh: The processes of one sequence; one alone by default.
        sharded: Weights, gradients and optimizer state are spread over all processes; the model is then of no use after the stage.
        zero: DeepSpeed, waiting for the model and its optimizer, if it is to spread them.
    """

    core: Any
    accelerator: Any
    mesh: Mesh = field(default_factory=Mesh)
    sharded: bool = False
    zero: Callable[[Any, torch.optim.AdamW], Zero] | None = None
    _hook: RemovableHandle | None = None

    @classmethod
    def of(cls, stage: Stage, model: Any, accelerator: Any) -> Sharing:
        """For one stage; every process calls it.

        Raises:
            ConfigError: ``sp_size`` does not divide the number of processes, or the model cannot be shared exactly.
        """
        size, processes = stage.parallel.sp_size, accelerator.num_processes
        zero = None
        if stage.parallel.zero is not None:
            zero = partial(Zero, config=read_config(stage.parallel.zero), stage=stage)
        sharded = stage.parallel.shard or accelerator.is_fsdp2
        if zero is not None and sharded:
            raise ConfigError(
                f"stages.{stage.name}.parallel: shard (FSDP2) and zero (DeepSpeed) do the same; choose one"
            )
        how: dict[str, Any] = {"sharded": sharded or zero is not None, "zero": zero}
        if processes % size:
            raise ConfigError(f"stages.{stage.name}.parallel.sp_size={size} does not divide {processes} processes")
        if size == 1 and not stage.packed:
            return cls(model, accelerator, **how)
        if not hasattr(model, "language_model"):
            raise ConfigError(
                f"stages.{stage.name}: {type(model).__name__} is no VLMForConditionalGeneration; it cannot share or pack"
            )
        ulysses, ring, inner = _way(stage, model)
        mesh = build_mesh(ulysses, ring)
        log.info("stage %s: sequences shared by %d x %d processes, %s", stage.name, ulysses, ring, inner)
        core = SequenceParallel(model, mesh, order=stage.parallel.order, inner=inner)
        return cls(core, accelerator, mesh, **how)

    def wrap(self, optimizer: Callable[[], torch.optim.AdamW]) -> tuple[Any, Any]:
        """`core` on its device, between processes, and what ``optimizer`` makes for its weights; for the steps of the stage."""
        if self.zero is not None:
            both = self.zero(self.core.to(self.accelerator.device), optimizer())
            return both, both
        if self.sharded:
            wrapped: Any = shard(self.core, self.accelerator)
        else:
            self._hook = keep_loss_connected(self.core)
            wrapped = self.accelerator.prepare_model(self.core)
        return wrapped, self.accelerator.prepare_optimizer(optimizer())

    def syncing(self, wrapped: Any, *, last: bool) -> AbstractContextManager[Any]:
        """For a micro-batch: gradients stay here until the ``last`` one of a step. Spread ones do not: whole they would not fit."""
        return nullcontext() if last or self.sharded else self.accelerator.no_sync(wrapped)

    def backward(self, wrapped: Any, loss: torch.Tensor) -> None:
        """Add the gradients of a micro-batch. Processes are averaged and the loss is a sum, so it is taken times their number."""
        loss = loss * self.accelerator.num_processes
        if isinstance(wrapped, Zero):
            wrapped.backward(loss)
        else:
            self.accelerator.backward(loss)

    def clip(self, optimizer: Any, most: float) -> float:
        """Scale the gradients to a norm of ``most`` at most; their norm before, over all processes."""
        if isinstance(optimizer, Zero):  # which scales them itself
            return optimizer.norm()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if not self.sharded:
            return float(self.accelerator.clip_grad_norm_(parameters, most))
        norm: Any = torch.nn.utils.clip_grad_norm_(parameters, most)
        return float(norm.full_tensor())

    def data_place(self) -> dict[str, Any]:
        """Of `MicroBatches`: ``rank`` and ``world`` of the samples, which the processes of a sequence share, and what is its ``own``."""
        size = self.mesh.size
        own = self.core.dealer.own_media if isinstance(self.core, SequenceParallel) else None
        return {
            "rank": self.accelerator.process_index // size,
            "world": self.accelerator.num_processes // size,
            "own": own,
        }

    def total(self, values: Iterable[float], dtype: torch.dtype) -> list[Any]:
        """Each value summed over all processes."""
        if self.accelerator.num_processes == 1:
            return list(values)
        own = torch.tensor(list(values), dtype=dtype, device=self.accelerator.device)
        total: list[Any] = self.accelerator.reduce(own, "sum").tolist()
        return total

    def counts(self, micro: list[Batch]) -> tuple[int, int, int]:
        """Targets, tokens and unusable samples that this process counts: one process counts for each sequence."""
        mine = micro if self.mesh.rank == 0 else []
        return sum(b.targets for b in mine), sum(b.tokens for b in mine), sum(len(b.bad) for b in mine)

    def inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What `core` is called with."""
        return {**batch, "use_cache": False} if hasattr(self.core, "prepare_inputs_for_generation") else batch

    def optimizer_tensors(self, optimizer: Any, names: dict[int, str]) -> dict[str, torch.Tensor]:
        """See `train.optim`; every process must ask, and gather what is spread."""
        return optimizer.state(names) if isinstance(optimizer, Zero) else optimizer_tensors(optimizer.optimizer, names)

    def load_optimizer(self, optimizer: Any, names: dict[int, str], tensors: dict[str, torch.Tensor]) -> None:
        """Inverse of `optimizer_tensors`."""
        if isinstance(optimizer, Zero):
            optimizer.load_state(names, tensors)
        else:
            load_optimizer_tensors(optimizer.optimizer, names, tensors)

    def weights(self, optimizer: Any, model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """``tensors`` of the model with those whole that DeepSpeed has spread."""
        return optimizer.weights(model, tensors) if isinstance(optimizer, Zero) else tensors

    def undo(self) -> None:
        """Take off what was put on the model, as far as that is possible."""
        if self._hook is not None:
            self._hook.remove()
        if isinstance(self.core, SequenceParallel):
            self.core.release()


def _way(stage: Stage, model: Any) -> tuple[int, int, str]:
    """(Ulysses, ring, inner scheme): as the stage says, else what sends the fewest bytes for its longest sequence."""
    wanted, config = stage.parallel, model.config.text_config
    if wanted.ulysses is not None:
        if wanted.sp_size % wanted.ulysses:
            raise ConfigError(
                f"stages.{stage.name}.parallel: ulysses={wanted.ulysses} does not divide sp_size={wanted.sp_size}"
            )
        return wanted.ulysses, wanted.sp_size // wanted.ulysses, wanted.inner or "gather"
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    size = torch.finfo(torch.bfloat16 if stage.dtype == "bf16" else torch.float32).bits // 8
    shape = AttentionShape(heads, getattr(config, "num_key_value_heads", None) or heads, width, size)
    found = choose(wanted.sp_size, [stage.seq_len], shape, order=wanted.order, node=wanted.node)
    return found.ulysses, found.ring, wanted.inner or found.inner
