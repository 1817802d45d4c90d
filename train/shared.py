"""Processes that share sequences in a stage (MM-SP): who gets which data, and what wraps the model."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch

from train.data import Batch
from train.stages import Stage
from vlm.errors import ConfigError
from vlm.parallel.mesh import Mesh, build_mesh
from vlm.parallel.model import SequenceParallel
from vlm.parallel.plan import AttentionShape, choose

log = logging.getLogger(__name__)


@dataclass
class Sharing:
    """How the processes of a stage share their sequences.

    Attributes:
        core: What is trained: the model, or a `SequenceParallel` around it in a stage that shares or packs.
        mesh: The processes of one sequence; one alone by default.
    """

    core: Any
    mesh: Mesh = field(default_factory=Mesh)

    @classmethod
    def of(cls, stage: Stage, model: Any, processes: int) -> Sharing:
        """For one stage; every process calls it.

        Raises:
            ConfigError: ``sp_size`` does not divide the number of processes, or the model cannot be shared exactly.
        """
        size = stage.parallel.sp_size
        if processes % size:
            raise ConfigError(f"stages.{stage.name}.parallel.sp_size={size} does not divide {processes} processes")
        if size == 1 and not stage.packed:
            return cls(model)
        if not hasattr(model, "language_model"):
            raise ConfigError(
                f"stages.{stage.name}: {type(model).__name__} is no VLMForConditionalGeneration; it cannot share or pack"
            )
        ulysses, ring, inner = _way(stage, model)
        mesh = build_mesh(ulysses, ring)
        log.info("stage %s: sequences shared by %d x %d processes, %s", stage.name, ulysses, ring, inner)
        return cls(SequenceParallel(model, mesh, order=stage.parallel.order, inner=inner), mesh)

    def data_place(self, process: int, processes: int) -> dict[str, int]:
        """``rank`` and ``world`` of the samples: the processes of a sequence get the same ones."""
        return {"rank": process // self.mesh.size, "world": processes // self.mesh.size}

    def counts(self, micro: list[Batch]) -> tuple[int, int, int]:
        """Targets, tokens and unusable samples that this process counts: one process counts for each sequence."""
        mine = micro if self.mesh.rank == 0 else []
        return sum(b.targets for b in mine), sum(b.tokens for b in mine), sum(len(b.bad) for b in mine)

    def inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with the frames and windows of sound that are this process's."""
        return self.core.own_media(batch) if isinstance(self.core, SequenceParallel) else batch

    def undo(self) -> None:
        """Give the text tower its own attention back."""
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
