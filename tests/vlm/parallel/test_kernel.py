"""One block of attention and its gradients against a softmax written down, with torch's grouped kernel and without."""

from __future__ import annotations

import pytest
import torch

from vlm.parallel import kernel

SCALE = 0.3


def textbook(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    group = q.shape[1] // k.shape[1]
    scores = torch.einsum("nhd,mhd->hnm", q, k.repeat_interleave(group, 1)) * SCALE
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), -torch.inf)
    out = torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v.repeat_interleave(group, 1))
    return out, scores.logsumexp(-1).T


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize(("rows", "keys", "causal"), [(33, 33, True), (20, 47, False), (1, 5, False)])
def test_a_block_and_its_gradients(
    rows: int, keys: int, causal: bool, heads: int, kv: int, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if grouped and not kernel._takes_groups():
        pytest.skip("this torch repeats keys outside of its kernel")
    monkeypatch.setattr(kernel, "_takes_groups", lambda: grouped)
    torch.manual_seed(0)
    sizes = ((rows, heads), (keys, kv), (keys, kv))
    q, k, v = (torch.randn(n, h, 8, dtype=torch.float64, requires_grad=True) for n, h in sizes)
    wanted, wanted_lse = textbook(q, k, v, causal)
    grad = torch.randn_like(wanted)
    wanted_grads = torch.autograd.grad(wanted, (q, k, v), grad)
    q, k, v = (kernel.packed(x.detach()) for x in (q, k, v))
    out, lse = kernel.attend(q, k, v, causal=causal, scale=SCALE)
    grads = kernel.attend_backward(grad, q, k, v, out, lse, causal=causal, scale=SCALE)
    pairs = [(out, wanted), (lse, wanted_lse), *zip(grads, wanted_grads, strict=True)]
    for found, expected in pairs:
        torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-12)


def test_two_blocks_joined_are_the_whole() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(9, 4, 8), torch.randn(30, 2, 8), torch.randn(30, 2, 8)
    whole, whole_lse = kernel.attend(q, k, v, causal=False, scale=SCALE)
    out, lse = (x.clone() for x in kernel.attend(q, k[:11], v[:11], causal=False, scale=SCALE))
    kernel.join(out, lse, *kernel.attend(q, k[11:], v[11:], causal=False, scale=SCALE))
    torch.testing.assert_close(out, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(lse, whole_lse, rtol=0, atol=1e-6)


def test_packing_moves_memory_and_no_numbers() -> None:
    x = torch.randn(5, 3, 8)
    assert kernel.packed(x).transpose(0, 1).is_contiguous()
    assert torch.equal(kernel.packed(x), x)
