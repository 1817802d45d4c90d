"""Attention of one block of queries to one block of keys, with the log-sum-exp that lets blocks be joined. The one file that knows
kernels.

Shapes: q ``[N, H, d]``; k and v ``[M, K, d]`` with H a multiple of K (grouped queries); out like q; lse ``[N, H]``.
On the CPU and on CUDA torch's own flash kernels do the work (half precision only on CUDA, and only if they pass a check against plain torch
when they are first needed, because no test of ours runs there); anything else is computed in plain torch.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

_aten: Any = torch.ops.aten
_cpu_flash: Any = _aten._scaled_dot_product_flash_attention_for_cpu
_cpu_flash_backward: Any = _aten._scaled_dot_product_flash_attention_for_cpu_backward
_cuda_flash: Any = _aten._flash_attention_forward
_cuda_flash_backward: Any = _aten._flash_attention_backward


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention within one block; `causal` compares row numbers, so q and k must then be the same tokens."""
    if q.device.type == "cpu" and _takes_groups():
        out, lse = _cpu_flash(*(_heads_first(x) for x in (q, k, v)), 0.0, causal, scale=scale)
        return out[0].transpose(0, 1), lse[0].T
    if _fused(q):
        return _attend_on_cuda(q, k, v, causal, scale)
    q4, k4, v4 = _by_group(q, k, v)
    if q.device.type == "cpu":
        out, lse = _cpu_flash(q4, k4, v4, 0.0, causal, scale=scale)
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
    if q.device.type == "cpu" and _takes_groups():
        tensors = [_heads_first(x) for x in (grad, q, k, v, out)]
        whole = _cpu_flash_backward(*tensors, lse.T[None].contiguous(), 0.0, causal, scale=scale)
        return whole[0][0].transpose(0, 1), whole[1][0].transpose(0, 1), whole[2][0].transpose(0, 1)
    if _fused(q):
        return _backward_on_cuda(grad, q, k, v, out, lse, causal, scale)
    q4, k4, v4 = _by_group(q, k, v)
    grad4, out4 = _split_heads(grad, k.shape[1]), _split_heads(out, k.shape[1])
    lse4 = lse.view(q.shape[0], *q4.shape[:2]).permute(1, 2, 0)
    if q.device.type == "cpu":
        grads = _cpu_flash_backward(grad4, q4, k4, v4, out4, lse4.contiguous(), 0.0, causal, scale=scale)
    else:
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


def packed(x_NHd: torch.Tensor) -> torch.Tensor:
    """The same numbers with the rows of a head next to each other in memory, which torch's CPU kernel reads up to 15 % faster."""
    return x_NHd.transpose(0, 1).contiguous().transpose(0, 1) if x_NHd.device.type == "cpu" else x_NHd


def join(out: torch.Tensor, lse: torch.Tensor, more: torch.Tensor, more_lse: torch.Tensor) -> None:
    """Add the attention of the same queries to other keys to ``out`` and ``lse``, in place."""
    whole = torch.logaddexp(lse, more_lse)
    out.mul_((lse - whole).exp_()[..., None]).addcmul_(more.to(out.dtype), (more_lse - whole).exp_()[..., None])
    lse.copy_(whole)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What partial results are added up in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@cache
def _takes_groups() -> bool:
    """Whether torch's CPU kernel takes fewer key heads than query heads (2.9 does). One that does not would find other numbers here
    where it looks for the second key head."""
    x = torch.arange(8, dtype=torch.float32, device="cpu").view(1, 2, 2, 2)
    alone, spread = x[:, :1], x[:, :1].expand(1, 2, 2, 2)
    return torch.equal(*(_cpu_flash(x, k, k, 0.0, False, scale=1.0)[0] for k in (alone, spread)))


def _heads_first(x: torch.Tensor) -> torch.Tensor:
    """``[N, H, d]`` -> ``[1, H, N, d]`` without a copy."""
    return x.transpose(0, 1)[None]


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


def _attend_on_cuda(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens first and grouped heads, as the kernel has them itself."""
    sizes = (None, None, len(q), len(k), 0.0, causal)
    out, lse = _cuda_flash(q[None], k[None], v[None], *sizes, False, scale=scale)[:2]
    return out[0], lse[0].T


def _backward_on_cuda(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    chance = torch.zeros(2, dtype=torch.uint64, device=q.device)  # state of a dropout that there is not
    sizes = (None, None, len(q), len(k), 0.0, causal)
    tensors = [x.to(q.dtype)[None] for x in (grad, q, k, v, out)]
    grads = _cuda_flash_backward(*tensors, lse.T[None].float().contiguous(), *sizes, chance, chance[0], scale=scale)
    return grads[0][0], grads[1][0], grads[2][0]


def _fused(q: torch.Tensor) -> bool:
    halves = (torch.float16, torch.bfloat16)
    return q.device.type == "cuda" and q.dtype in halves and _passes(q.device, q.dtype, q.shape[-1])


@cache
def _passes(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether the fused kernel gives what plain torch does for heads of this width, forward and backward."""
    made = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(40, heads, width, generator=made).to(device, dtype) for heads in (4, 2, 2, 4))
    whole = [x.float().requires_grad_() for x in (q, k, v)]
    with torch.enable_grad():
        q4, k4, v4 = _by_group(*whole)
        wanted = (_scores(q4, k4, True, 0.3).softmax(-1) @ v4).permute(2, 0, 1, 3).reshape(q.shape)
        wanted.backward(grad.float())
    try:
        out, lse = _attend_on_cuda(q, k, v, True, 0.3)
        grads = _backward_on_cuda(grad, q, k, v, out, lse, True, 0.3)
    except (RuntimeError, TypeError):  # an older or newer torch, a width or a GPU that the kernel does not take
        return False
    pairs = [(out, wanted), *((g, x.grad) for g, x in zip(grads, whole, strict=True))]
    return all(float((a.float() - b).abs().max()) <= 0.03 * float(b.abs().max()) for a, b in pairs if b is not None)
