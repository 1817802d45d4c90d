"""Rows change hands between processes, and so do their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

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
