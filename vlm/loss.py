"""Cross entropy of a linear head without the logits of all tokens at once.

A vocabulary is wide: the logits of 8192 tokens over 49152 words are 1.6 GB in float32, and plain autograd keeps several of that size. Here
rows go through the head in chunks, and the gradients are computed on the way, while the logits of the chunk are there (as in Liger and in
Apple's cut cross-entropy; the code is ours).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

CHUNK = 512  # rows


def next_tokens(labels_BL: torch.Tensor) -> torch.Tensor:
    """What each position is to predict ``[B, L]``: the label of the next one, -100 at the end."""
    return nn.functional.pad(labels_BL[:, 1:], (0, 1), value=-100)


def head_loss(head: nn.Module, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Sum over rows of the cross entropy of ``head(hidden)``, in float32 (float64 if the input is).

    Args:
        head: A plain `nn.Linear` takes the way described above; anything else makes all logits.
        hidden_ND: What the head reads.
        targets_N: Token ids; -100 counts nothing.
    """
    wanted_N = targets_N != -100
    hidden_ND, targets_N = hidden_ND[wanted_N], targets_N[wanted_N]  # most of a video's positions have no target
    if type(head) is nn.Linear and not torch.is_autocast_enabled(hidden_ND.device.type):
        loss: torch.Tensor = _LinearCrossEntropy.apply(hidden_ND, head.weight, head.bias, targets_N)
        return loss
    logits = head(hidden_ND)
    return nn.functional.cross_entropy(logits.to(_precise(logits)), targets_N, reduction="sum")


def _precise(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, targets_N: torch.Tensor
    ) -> torch.Tensor:
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        dtype = _precise(hidden_ND)
        total = torch.zeros((), dtype=dtype, device=hidden_ND.device)
        grads = [
            torch.empty_like(hidden_ND) if need_hidden else None,
            torch.zeros_like(weight_VD, dtype=dtype) if need_weight else None,
            torch.zeros_like(bias_V, dtype=dtype) if need_bias and bias_V is not None else None,
        ]
        # two buffers for all chunks: to hand out memory for each costs as much as a pass over the logits, and that a tenth of the head
        logits_CV, shares_CV = (
            torch.empty(min(CHUNK, len(hidden_ND)), len(weight_VD), dtype=dtype, device=hidden_ND.device)
            for _ in range(2)
        )
        for start in range(0, len(hidden_ND), CHUNK):
            rows = slice(start, start + CHUNK)
            hidden, targets = hidden_ND[rows], targets_N[rows]
            logits, shares = logits_CV[: len(hidden)], shares_CV[: len(hidden)]
            if hidden.dtype == dtype and bias_V is None:
                torch.mm(hidden, weight_VD.T, out=logits)
            else:
                logits.copy_(nn.functional.linear(hidden, weight_VD, bias_V))
            likely = torch.log_softmax(logits, 1, out=shares)
            total -= likely.gather(1, targets[:, None]).sum()
            if not any(grad is not None for grad in grads):
                continue
            shares = torch.exp(likely, out=logits)
            shares[torch.arange(len(targets), device=targets.device), targets] -= 1
            grad_CV = shares.to(hidden.dtype)  # of the loss, in the logits
            if grads[0] is not None:
                torch.mm(grad_CV, weight_VD, out=grads[0][rows])
            if grads[1] is not None:
                grads[1].addmm_(grad_CV.T.to(dtype), hidden.to(dtype))
            if grads[2] is not None:
                grads[2] += grad_CV.sum(0)
        ctx.save_for_backward(*(x for x in grads if x is not None))
        ctx.present = [x is not None for x in grads]
        ctx.dtypes = [x.dtype if x is not None else None for x in (hidden_ND, weight_VD, bias_V)]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        out = [
            (next(saved) * grad).to(dtype) if there else None
            for there, dtype in zip(ctx.present, ctx.dtypes, strict=True)
        ]
        return (*out, None)
