"""Attention of one block of queries to one block of keys, with the log-sum-exp that lets blocks be joined. The one file that knows
kernels.

Shapes: q ``[N, H, d]``; k and v ``[M, K, d]`` with H a multiple of K (grouped queries); out like q; lse ``[N, H]``.
On the CPU and on CUDA torch's own flash kernels do the work (half precision only on CUDA); anything else is computed in plain torch.
"""

from __future__ import annotations

from typing import Any

import torch

_aten: Any = torch.ops.aten


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention within one block; `causal` compares row numbers, so q and k must then be the same tokens."""
    q4, k4, v4 = _by_group(q, k, v)
    if q.device.type == "cpu":
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(q4, k4, v4, 0.0, causal, scale=scale)
    elif _cuda_flash(q):
        out, lse = _aten._scaled_dot_product_flash_attention(q4, k4, v4, 0.0, causal, scale=scale)[:2]
    else:
        scores = _scores(q4, k4, causal, scale)
        lse = scores.logsumexp(-1)
        out = (scores - lse[..., None]).exp().to(v.dtype) @ v4
    return out.permute(2, 0, 1, 3).reshape(q.shape), lse.permute(2, 0, 1).reshape(q.shape[:2])


def attend_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    *,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v from this block. ``out`` and ``lse`` are those of the whole row, over all of its blocks: the share of the
    block in it is then exp(score - lse)."""
    q4, k4, v4 = _by_group(q, k, v)
    grad4, out4 = _split_heads(grad, k.shape[1]), _split_heads(out, k.shape[1])
    lse4 = lse.view(q.shape[0], *q4.shape[:2]).permute(1, 2, 0)
    if q.device.type == "cpu":
        grads = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad4, q4, k4, v4, out4, lse4.contiguous(), 0.0, causal, scale=scale
        )
    else:  # plain torch; the fused CUDA kernel's backward needs its own random state and sequence tables
        shares = (_scores(q4, k4, causal, scale) - lse4[..., None]).exp()
        grad_shares = grad4.to(shares.dtype) @ v4.to(shares.dtype).transpose(-1, -2)
        delta = (grad4.to(shares.dtype) * out4.to(shares.dtype)).sum(-1, keepdim=True)
        grad_scores = shares * (grad_shares - delta) * scale
        grads = (
            grad_scores @ k4.to(shares.dtype),
            grad_scores.transpose(-1, -2) @ q4.to(shares.dtype),
            shares.transpose(-1, -2) @ grad4.to(shares.dtype),
        )
    grad_q = grads[0].permute(2, 0, 1, 3).reshape(q.shape)
    grad_k, grad_v = (g.sum(1).permute(1, 0, 2) for g in grads[1:])  # the heads of a group share their key
    return grad_q, grad_k, grad_v


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What partial results are added up in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _split_heads(x: torch.Tensor, groups: int) -> torch.Tensor:
    """``[N, H, d]`` -> ``[K, H / K, N, d]`` without a copy."""
    return x.view(x.shape[0], groups, -1, x.shape[2]).permute(1, 2, 0, 3)


def _by_group(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Heads by the key head they share: q ``[K, G, N, d]``, k and v ``[K, G, M, d]``, none of them copied."""
    groups, per_group = k.shape[1], q.shape[1] // k.shape[1]
    k4, v4 = (x.transpose(0, 1)[:, None].expand(groups, per_group, *x.shape[::2]) for x in (k, v))
    return _split_heads(q, groups), k4, v4


def _scores(q4: torch.Tensor, k4: torch.Tensor, causal: bool, scale: float) -> torch.Tensor:
    scores = (q4.to(accumulator(q4.dtype)) @ k4.to(accumulator(q4.dtype)).transpose(-1, -2)) * scale
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores


def _cuda_flash(q: torch.Tensor) -> bool:
    return q.device.type == "cuda" and q.dtype in (torch.float16, torch.bfloat16)
