"""One block of attention and its gradients against a softmax written down, with torch's grouped kernel and without."""

from __future__ import annotations

from typing import Any

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


def cuda_like(q: Any, k: Any, v: Any, *sizes: Any, scale: float) -> tuple[torch.Tensor, torch.Tensor, None, None, None]:
    """What `aten::_flash_attention_forward` gives, as its schema has it: tokens before heads, lse with heads first."""
    assert sizes[:2] == (None, None) and sizes[2:4] == (q.shape[1], k.shape[1]) and scale == SCALE
    out, lse = textbook(q[0], k[0], v[0], sizes[5])
    return out[None], lse.T[None], None, None, None


def cuda_like_backward(
    grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, *sizes: Any, scale: float
) -> list[torch.Tensor]:
    """`aten::_flash_attention_backward`: the shares of the keys follow from ``lse``, whatever other keys went into it."""
    group = q.shape[2] // k.shape[2]
    keys, values = (x[0].repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("nhd,mhd->hnm", q[0], keys) * scale
    if sizes[5]:
        scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), -torch.inf)
    shares = (scores - lse[0][..., None]).exp()
    delta = (grad * out).sum(-1)[0].T
    inner = shares * (torch.einsum("nhd,mhd->hnm", grad[0], values) - delta[..., None]) * scale
    whole = torch.einsum("hnm,nhd->mhd", inner, q[0]), torch.einsum("hnm,nhd->mhd", shares, grad[0])
    grouped = [x.view(len(x), -1, group, x.shape[-1]).sum(2)[None] for x in whole]
    return [torch.einsum("hnm,mhd->nhd", inner, keys)[None], *grouped]


@pytest.mark.parametrize("joined", [False, True])
def test_the_fused_kernel_of_a_gpu_is_called_as_its_schema_says(joined: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for it; that the real one agrees is checked where there is one, before it is used."""
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(12, heads, 8, dtype=torch.float64) for heads in (6, 2, 2, 6))
    more_k, more_v = (torch.randn(5, 2, 8, dtype=torch.float64) for _ in range(2))
    plain = []
    for fused in (False, True):
        if fused:
            monkeypatch.setattr(kernel, "_fused", lambda q: True)
            monkeypatch.setattr(kernel, "_takes_groups", lambda: False)
            monkeypatch.setattr(kernel, "_cuda_flash", cuda_like)
            monkeypatch.setattr(kernel, "_cuda_flash_backward", cuda_like_backward)
        out, lse = (x.clone() for x in kernel.attend(q, k, v, causal=True, scale=SCALE))
        if joined:
            kernel.join(out, lse, *kernel.attend(q, more_k, more_v, causal=False, scale=SCALE))
        plain.append([out, lse, *kernel.attend_backward(grad, q, k, v, out, lse, causal=True, scale=SCALE)])
    for a, b in zip(*plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_the_schema_of_this_torch_takes_what_the_fused_kernel_is_given() -> None:
    q, k = (torch.empty(12, heads, 16, dtype=torch.bfloat16, device="meta") for heads in (6, 2))
    out, lse = kernel._attend_on_cuda(q, k, k, True, SCALE)
    assert (out.shape, lse.shape) == (q.shape, q.shape[:2])
    grads = kernel._backward_on_cuda(out, q, k, k, out, lse, True, SCALE)
    assert [g.shape for g in grads] == [q.shape, k.shape, k.shape]


def test_a_fused_kernel_that_cannot_run_is_not_used() -> None:
    assert not kernel._fused(torch.zeros(2, 4, 8))
    assert not kernel._passes(torch.device("cpu"), torch.float32, 8)


def test_a_fused_kernel_that_is_right_passes_and_a_wrong_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_cuda_flash", cuda_like)
    monkeypatch.setattr(kernel, "_cuda_flash_backward", cuda_like_backward)
    with torch.no_grad():  # as inside of an autograd function
        assert kernel._passes.__wrapped__(torch.device("cpu"), torch.float32, 8)
    monkeypatch.setattr(kernel, "_cuda_flash_backward", lambda *a, **o: [2 * g for g in cuda_like_backward(*a, **o)])
    assert not kernel._passes.__wrapped__(torch.device("cpu"), torch.float32, 8)


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
