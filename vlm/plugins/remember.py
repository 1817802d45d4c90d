"""Learning without forgetting (Li and Hoiem 2016): on what it could do before, the model goes on to answer as it did then."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm.errors import ConfigError
from vlm.loss import next_tokens
from vlm.plugins import Plugin
from vlm.plugins.hidden import Hidden


@dataclass
class Remember(Plugin):
    """Adds ``weight`` times the divergence KL(before || now) of the next token, averaged over the targets that count.

    The model as it was is read from ``teacher`` and stays frozen. What it said about a wrong answer counts as much as what it said
    about the right one. That keeps apart what new training data would throw together, e.g. pairs that never occur in them.

    Attributes:
        teacher: Folder of the model as it was (``save_pretrained``).
        weight: Of this loss; the model's own has 1.
        unless: Batches with one of these inputs are left alone: what the model is to learn, and could not do before.
        longest: Batches with more tokens in a row are left alone, too.
        right: Only targets count where the most likely token was the right one: what it did not know, it may learn.
    """

    teacher: str
    weight: float = 1.0
    unless: list[str] = field(default_factory=lambda: ["mel"])
    longest: int | None = None
    right: bool = False

    def __post_init__(self) -> None:
        self._teacher: Any = None
        self._watched: Any = None

    def prepare(self, model: Any) -> Any:
        """Read the teacher, and watch what the decoder of the model gives out.

        Raises:
            ConfigError: There is no such folder, or its model has another vocabulary.
        """
        if not Path(self.teacher).is_dir():
            raise ConfigError(f"teacher={self.teacher!r} is no folder with the model as it was")
        dtype = next(model.parameters()).dtype
        teacher = type(model).from_pretrained(self.teacher, dtype=dtype).eval().requires_grad_(False)
        own, other = (m.get_input_embeddings().num_embeddings for m in (model, teacher))
        if own != other:
            raise ConfigError(f"teacher={self.teacher!r} has {other} words, the model {own}")
        self._teacher, self._watched = teacher, Hidden(model, "remember")
        return model

    def losses(self, batch: dict[str, Any], outputs: Any) -> dict[str, Tensor]:
        """The divergence for a batch as `VLMForConditionalGeneration` takes it.

        Raises:
            ConfigError: The samples are packed, or shared by several processes.
        """
        hidden_BLD = self._watched.take(batch)
        if "documents" in batch:
            raise ConfigError("the plugin 'remember' does not work with packed samples")
        new = any(batch.get(name) is not None for name in self.unless)
        if new or (self.longest is not None and hidden_BLD.shape[1] > self.longest):
            return {"remember": outputs.loss.new_zeros(())}
        counted_BL = next_tokens(batch["labels"]) != -100
        keep = counted_BL.any(0).nonzero().flatten()
        asked = {k: v for k, v in batch.items() if k not in ("labels", "num_items_in_batch")}
        with torch.no_grad():
            before = self._teacher.to(hidden_BLD.device)(**asked, logits_to_keep=keep).logits[counted_BL[:, keep]]
        now = self._watched.logits(hidden_BLD[counted_BL])
        if self.right:
            knew = before.argmax(-1) == next_tokens(batch["labels"])[counted_BL]
            if not knew.any():
                return {"remember": outputs.loss.new_zeros(())}
            before, now = before[knew], now[knew]
        kl = nn.functional.kl_div(
            now.float().log_softmax(-1), before.float().log_softmax(-1), reduction="batchmean", log_target=True
        )
        return {"remember": self.weight * kl}

    def finish(self, model: nn.Module) -> nn.Module:
        """Forget the teacher."""
        self._watched.release()
        self._teacher = self._watched = None
        return model
