"""Train some rows of the vocabulary (time tokens, say) and leave the rest of a large embedding table frozen.

The rows live in one small parameter. On the input side they replace what the frozen table gives for their ids; on the output side (if the
two are tied) they replace those columns of the logits. So the table itself needs no gradient: only the rows have gradients, optimizer
state and a place in the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vlm.errors import ConfigError
from vlm.plugins import Plugin


class _Rows(nn.Module):
    """The trained rows ``[R, D]`` of a table and the hooks that put them in place."""

    ids: Tensor
    place: Tensor

    def __init__(self, ids: Tensor, rows: Tensor, vocabulary: int) -> None:
        super().__init__()
        place = torch.full((vocabulary,), -1)
        place[ids] = torch.arange(len(ids))
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("place", place, persistent=False)
        self.token_rows = nn.Parameter(rows)
        self.handles: list[Any] = []

    def embed(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Forward hook of the input embedding: ``[..., D]`` with the rows' ids replaced."""
        place = self.place[inputs[0]]
        return torch.where((place >= 0).unsqueeze(-1), self.token_rows[place.clamp_min(0)].to(output.dtype), output)

    def score(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Forward hook of the output head: logits ``[..., V]`` with the rows' columns replaced."""
        return output.index_copy(-1, self.ids, inputs[0] @ self.token_rows.T.to(inputs[0].dtype))


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
        """Hook the table(s). Does nothing when an earlier stage did.

        Raises:
            ConfigError: The ids do not lie in the table.
        """
        source, head = _tables(model)
        if hasattr(source, "trained"):
            return model
        vocabulary = source.weight.shape[0]
        ids = self._ids(vocabulary)
        rows = _Rows(ids, source.weight.detach()[ids].clone(), vocabulary)
        source.weight.requires_grad_(False)
        rows.handles.append(source.register_forward_hook(rows.embed))
        if head is not None and head.weight is source.weight:
            rows.handles.append(head.register_forward_hook(rows.score))
        source.add_module("trained", rows)
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
        """Write the trained rows into the table and leave the model as it was."""
        source, _ = _tables(model)
        rows = getattr(source, "trained", None)
        if rows is None:
            return model
        for handle in rows.handles:
            handle.remove()
        with torch.no_grad():
            source.weight[rows.ids] = rows.token_rows.to(source.weight.dtype)
        del source.trained
        return model


def _tables(model: Any) -> tuple[Any, Any]:
    return model.get_input_embeddings(), model.get_output_embeddings()
