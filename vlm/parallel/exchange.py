"""Rows change hands between processes, and so do their gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from vlm.parallel.layout import Range, rows_in
from vlm.parallel.mesh import Group


def exchange(x: torch.Tensor, send: Sequence[int], receive: Sequence[int], group: Group) -> torch.Tensor:
    """All-to-all of rows with a gradient: the reverse exchange.

    Args:
        x: ``[sum(send), ...]``, the rows for process 0 first.
        send: Rows for each process of the group.
        receive: Rows from each.
        group: The processes; None for this one alone.

    Returns:
        ``[sum(receive), ...]``, the rows of process 0 first.
    """
    if group is None:
        return x
    out: torch.Tensor = _Exchange.apply(connected(x), list(send), list(receive), group)
    return out


def connected(x: torch.Tensor) -> torch.Tensor:
    """``x`` as part of the graph even where nothing before it is trained: others may wait for this process in the backward pass."""
    return x if x.requires_grad or not torch.is_grad_enabled() else x.detach().requires_grad_()


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, send: list[int], receive: list[int], group: Group) -> torch.Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        return all_to_all_rows(x, send, receive, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return all_to_all_rows(grad, ctx.receive, ctx.send, ctx.group), None, None, None


def all_to_all_rows(x: torch.Tensor, send: list[int], receive: list[int], group: Group) -> torch.Tensor:
    """`exchange` without a gradient."""
    out = x.new_empty(sum(receive), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), receive, send, group=group)
    return out


@dataclass(frozen=True)
class Fetch:
    """What brings the keys and values that my queries need from whoever holds them.

    Attributes:
        own: Ranges of my rows, all of them, in the order in which they come first in the result.
        send: For each process of the group the ranges of my rows that it needs; none for this one.
        receive: Rows from each; they follow my own.
        group: The processes.
    """

    own: list[Range]
    send: list[list[Range]]
    receive: list[int]
    group: Group

    @property
    def _counts(self) -> list[int]:
        return [rows_in(ranges) for ranges in self.send]

    @property
    def _sent(self) -> list[Range]:
        return [one for ranges in self.send for one in ranges]

    def there(self, k_NKd: torch.Tensor, v_NKd: torch.Tensor) -> torch.Tensor:
        """Keys beside values ``[M, 2, K, d]``: mine, then those of the others."""
        both_M2Kd = k_NKd.new_empty(len(k_NKd) + sum(self.receive), 2, *k_NKd.shape[1:])
        sent = k_NKd.new_empty(sum(self._counts), *both_M2Kd.shape[1:])
        for ranges, to in ((self.own, both_M2Kd), (self._sent, sent)):
            for (start, stop), rows in _laid_out(ranges):
                to[rows, 0], to[rows, 1] = k_NKd[start:stop], v_NKd[start:stop]
        dist.all_to_all_single(both_M2Kd[len(k_NKd) :], sent, self.receive, self._counts, group=self.group)
        return both_M2Kd

    def back(self, grad_M2Kd: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of my keys and values, those of their copies elsewhere added; they travel as ``dtype``."""
        count = rows_in(self.own)
        returned = all_to_all_rows(grad_M2Kd[count:].to(dtype), self.receive, self._counts, self.group)
        whole_N2Kd = grad_M2Kd.new_empty(count, *grad_M2Kd.shape[1:])
        for (start, stop), rows in _laid_out(self.own):
            whole_N2Kd[start:stop] = grad_M2Kd[rows]
        for (start, stop), rows in _laid_out(self._sent):
            whole_N2Kd[start:stop].add_(returned[rows])
        return whole_N2Kd[:, 0], whole_N2Kd[:, 1]


def _laid_out(ranges: Sequence[Range]) -> Iterator[tuple[Range, slice]]:
    """Each range with the rows it takes when all are laid end to end."""
    row = 0
    for start, stop in ranges:
        yield (start, stop), slice(row, row + stop - start)
        row += stop - start
