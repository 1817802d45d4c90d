"""Train some rows of the vocabulary (time tokens, say) and leave the rest of a large embedding table frozen.

The table becomes ``base.index_copy(rows)``, on the input side and on the output side if the two are tied, so only the new rows have
gradients, optimizer state and a place in the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vlm.errors import ConfigError
from vlm.plugins import Plugin


class _Rows(nn.Module):
    """Parametrisation of a table ``[V, D]`` that replaces the rows ``ids``."""

    def __init__(self, ids: Tensor, rows: nn.Parameter) -> None:
        super().__init__()
        self.register_buffer("ids", ids, persistent=False)
        self.token_rows = rows

    def forward(self, table: Tensor) -> Tensor:
        return table.index_copy(0, self.ids, self.token_rows)


@dataclass
class TokenRows(Plugin):
    """Makes rows of the embedding table trainable under the pattern ``*.token_rows``.

    Attributes:
        first: First id, or
        count: how many of the last ids of the table (both may be combined: ``count`` ids from ``first`` on).
        ids: Or the ids themselves.
    """

    first: int | None = None
    count: int | None = None
    ids: list[int] = field(default_factory=list)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Parametrise the table(s). Does nothing when an earlier stage did.

        Raises:
            ConfigError: The ids do not lie in the table.
        """
        source = model.get_input_embeddings()
        if parametrize.is_parametrized(source, "weight"):
            return model
        ids = self._ids(source.weight.shape[0])
        head = model.get_output_embeddings()
        tied = head is not None and head.weight is source.weight
        rows = nn.Parameter(source.weight.detach()[ids].clone())
        for owner in [source, head] if tied else [source]:
            owner.weight.requires_grad_(False)
            parametrize.register_parametrization(owner, "weight", _Rows(ids, rows), unsafe=True)
        return model

    def _ids(self, vocabulary: int) -> Tensor:
        if self.ids:
            chosen = list(self.ids)
        else:
            count = self.count or 0
            first = vocabulary - count if self.first is None else self.first
            chosen = list(range(first, first + count))
        if not chosen or min(chosen) < 0 or max(chosen) >= vocabulary:
            raise ConfigError(f"plugin token_rows: ids {chosen[:3]}... do not lie in a vocabulary of {vocabulary}")
        return torch.tensor(chosen)

    def finish(self, model: nn.Module) -> nn.Module:
        """Write the trained rows into the table and tie it again."""
        source, head = model.get_input_embeddings(), model.get_output_embeddings()
        if not parametrize.is_parametrized(source, "weight"):
            return model
        tied = head is not None and parametrize.is_parametrized(head, "weight")
        parametrize.remove_parametrizations(source, "weight", leave_parametrized=True)
        if tied:
            parametrize.remove_parametrizations(head, "weight", leave_parametrized=True)
            head.weight = source.weight
        return model
