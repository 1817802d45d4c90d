"""A time token that is nearly right is less wrong than one far off: Gaussian soft cross-entropy over time tokens (VILA's port of LITA)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vlm.errors import ConfigError
from vlm.loss import next_tokens
from vlm.plugins import Plugin
from vlm.plugins.hidden import Hidden


def soft_targets(count: int, std: float) -> Tensor:
    """``[T, T]``: row y is what is wanted where the truth is time token y, ``q_j ~ exp(-(y - j)^2 / (2 std^2))``, normalised.

    ``std`` 0 is the identity, ordinary cross-entropy. At the ends the weights that would lie outside go to those inside.
    """
    if std == 0:
        return torch.eye(count)
    index = torch.arange(count, dtype=torch.float64)
    return (-((index[:, None] - index) ** 2) / (2 * std**2)).softmax(1).float()


@dataclass
class SoftTimes(Plugin):
    """Adds, for every target that is a time token, its soft cross-entropy less the ordinary one; together with the model's own loss that
    is soft cross-entropy there and ordinary cross-entropy everywhere else. The softmax is over the whole vocabulary.

    Attributes:
        std: Standard deviation of the Gaussian in time tokens; VILA's default is 1, and 0 changes nothing.
        ids: Time tokens in the order of time; empty for `VLMConfig.time_token_ids`.
    """

    std: float = 1.0
    ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.std >= 0:
            raise ConfigError(f"plugin soft_times: std={self.std} is less than 0")
        self._watched: Hidden | None = None

    def prepare(self, model: Any) -> Any:
        """Look up the time tokens, and watch what the decoder of the model gives out.

        Raises:
            ConfigError: The model's codec has no tokens in the order of time, or they do not lie in its vocabulary.
        """
        ids = self.ids or model.config.time_token_ids or []
        vocabulary = model.get_output_embeddings().weight.shape[0]
        if len(ids) < 2 or not all(0 <= i < vocabulary for i in ids):
            raise ConfigError(
                f"plugin soft_times: the model has no time tokens (ids {ids[:3]}); train with time.codec='relative', or give ids"
            )
        place = torch.full((vocabulary,), -1)
        place[torch.tensor(ids)] = torch.arange(len(ids))
        self._ids, self._place, self._wanted = torch.tensor(ids), place, soft_targets(len(ids), self.std)
        self._watched = Hidden(model, "soft_times")
        return model

    def losses(self, batch: dict[str, Any], outputs: Any) -> dict[str, Tensor]:
        """For a batch as `VLMForConditionalGeneration` takes it; a mean over all targets, like the model's own loss."""
        assert self._watched is not None
        hidden_BLD = self._watched.take(batch)
        targets_BL = next_tokens(batch["labels"])
        place_BL = self._place.to(targets_BL.device)[targets_BL.clamp_min(0)]
        timed_BL = (place_BL >= 0) & (targets_BL != -100)
        scores_NV = nn.functional.log_softmax(self._watched.logits(hidden_BLD[timed_BL]).float(), dim=-1)
        device = scores_NV.device
        wanted_NT = self._wanted.to(device)[place_BL[timed_BL]]
        soft_N = -(wanted_NT * scores_NV[:, self._ids.to(device)]).sum(1)
        hard_N = -scores_NV.gather(1, targets_BL[timed_BL][:, None])[:, 0]
        return {"soft_times": (soft_N - hard_N).sum() / (targets_BL != -100).sum().clamp_min(1)}

    def finish(self, model: nn.Module) -> nn.Module:
        """Stop watching."""
        if self._watched is not None:
            self._watched.release()
            self._watched = None
        return model
