"""The chunked loss is the plain one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vlm.loss
from vlm.loss import head_loss


def plain(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(head(hidden).double(), targets, reduction="sum", ignore_index=-100)


@pytest.mark.parametrize("rows", [0, 1, 7, 50])
@pytest.mark.parametrize("bias", [True, False])
def test_loss_and_gradients(rows: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlm.loss, "CHUNK", 16)
    torch.manual_seed(0)
    head = nn.Linear(12, 40, bias=bias).double()
    hidden = torch.randn(rows, 12, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 40, (rows,))
    targets[::5] = -100
    wanted, found = plain(head, hidden, targets), head_loss(head, hidden, targets)
    assert float((wanted - found).detach().abs()) < 1e-12
    inputs = [hidden, *head.parameters()]
    for a, b in zip(*(torch.autograd.grad(0.3 * x, inputs) for x in (wanted, found)), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_a_frozen_head_gets_no_gradient_and_costs_no_table() -> None:
    head = nn.Linear(12, 40, bias=False).requires_grad_(False)
    hidden = torch.randn(9, 12, requires_grad=True)
    loss = head_loss(head, hidden, torch.randint(0, 40, (9,)))
    assert [tuple(x.shape) for x in loss.grad_fn.saved_tensors] == [(9, 12)]  # type: ignore[union-attr]
    loss.backward()
    assert head.weight.grad is None and hidden.grad is not None


def test_without_gradients_nothing_is_kept() -> None:
    with torch.no_grad():
        loss = head_loss(nn.Linear(3, 5), torch.randn(4, 3), torch.tensor([0, 1, -100, 2]))
    assert not loss.requires_grad and float(loss) > 0


def test_a_head_that_is_not_linear_is_called() -> None:
    head = nn.Sequential(nn.Linear(3, 5), nn.Tanh())
    hidden, targets = torch.randn(4, 3), torch.tensor([0, 1, -100, 2])
    assert torch.allclose(head_loss(head, hidden, targets), plain(head, hidden, targets).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head = nn.Linear(12, 40).to(dtype)
    hidden, targets = torch.randn(9, 12, dtype=dtype, requires_grad=True), torch.randint(0, 40, (9,))
    loss = head_loss(head, hidden, targets)
    wanted = nn.functional.cross_entropy(head(hidden).float(), targets, reduction="sum")
    assert loss.dtype == torch.float32
    assert torch.allclose(loss, wanted, rtol=1e-5)
    for a, b in zip(*(torch.autograd.grad(x, [hidden, *head.parameters()]) for x in (wanted, loss)), strict=True):
        assert a.dtype == b.dtype == dtype
        assert torch.allclose(a.float(), b.float(), rtol=0.02, atol=0.02)
