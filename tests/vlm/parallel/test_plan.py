"""The plan's bytes are the bytes that travel, and its choices are those of the published formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from eval.world import run_world
from vlm.errors import ConfigError
from vlm.parallel.attention import ParallelAttention
from vlm.parallel.layout import Layout
from vlm.parallel.mesh import build_mesh
from vlm.parallel.plan import AttentionShape, choose, evaluate, traffic, ways

CASES = [
    ((48,), 9, 3, "zigzag"),
    ((5, 1, 20, 3, 18), 4, 2, "contiguous"),
    ((31, 2), 8, 1, "zigzag"),
    ((40,), 4, 4, "zigzag"),
]


def counted(rank: int, world: int) -> list[tuple[str, list[int], list[int]]]:
    """Bytes sent by this process, counted at torch.distributed, beside those of the plan: (case, counted, planned)."""
    sent = [0]
    real_exchange, real_batch = dist.all_to_all_single, dist.batch_isend_irecv

    def exchange(out: Any, x: Any, receive: Any, send: list[int], group: Any = None) -> Any:
        me = dist.get_group_rank(group, rank)
        per_row = x[0].numel() * x.element_size() if len(x) else 0
        sent[0] += per_row * sum(n for i, n in enumerate(send) if i != me)
        return real_exchange(out, x, receive, send, group=group)

    def batch(operations: list[Any]) -> Any:
        sent[0] += sum(op.tensor.numel() * op.tensor.element_size() for op in operations if op.op is dist.isend)
        return real_batch(operations)

    patch = pytest.MonkeyPatch()
    patch.setattr(dist, "all_to_all_single", exchange)
    patch.setattr(dist, "batch_isend_irecv", batch)
    found = []
    for ulysses in (u for u in (1, 2, 4) if world % u == 0):
        mesh = build_mesh(ulysses, world // ulysses)
        for documents, heads, kv, order in CASES:
            layout, shape = Layout(documents, ulysses, mesh.ring, order), AttentionShape(heads, kv, 8, 4, 4)
            for inner in ("gather", "ring"):
                rows = layout.rows(mesh.rank)
                q, k, v = (torch.randn(len(rows), h, 8, requires_grad=True) for h in (heads, kv, kv))
                sent[0] = 0
                out = ParallelAttention(mesh, layout, inner)(q, k, v)
                forward = sent[0]
                out.sum().backward()
                plan = [
                    sum(matrix[mesh.rank]) for matrix in traffic(layout, shape, inner if mesh.ring > 1 else "gather")
                ]
                found.append((f"{ulysses} {documents} {heads}/{kv} {inner}", [forward, sent[0] - forward], plan))
    return found


@pytest.mark.parametrize("world", [2, 4])
def test_planned_bytes_are_sent_to_the_byte(world: int) -> None:
    for found in run_world(counted, world, world):
        for case, sent, planned in found:
            assert sent == planned, case


def best(heads: int, kv: int, size: int) -> dict[tuple[int, int, str], float]:
    shape, length = AttentionShape(heads, kv, 64, 2, 2), 1 << 15
    whole = length * heads * 64 * 2
    return {(c.ulysses, c.ring, c.inner): c.sent / whole for c in ways(size, [length], shape)}


def test_formulas_of_evenly_dealt_sequences() -> None:
    """Units of the hidden tensor, forward and backward: Ulysses 2 (2 + 2 g') (P - 1) / P², ring g (6 P - 4) / P; gather sends only
    what is needed: three quarters of all keys in zigzag order."""
    for heads, kv, size in ((12, 2, 2), (12, 2, 4), (28, 4, 4), (32, 8, 8), (32, 32, 8)):
        found, g = best(heads, kv, size), kv / heads
        shared = max(kv, size) / heads
        assert found[(size, 1, "gather")] == pytest.approx(2 * (2 + 2 * shared) * (size - 1) / size**2, rel=0.02)
        assert found[(1, size, "ring")] == pytest.approx(g * (6 * size - 4) / size, rel=0.02)
        assert found[(1, size, "gather")] == pytest.approx(0.75 * 4 * g * (size - 1) / size, rel=0.02)


def test_grouped_queries_gather_and_many_heads_exchange_heads() -> None:
    def chosen(heads: int, kv: int, size: int) -> tuple[int, int, str]:
        choice = choose(size, [1 << 15], AttentionShape(heads, kv, 64), far_cost=1)
        return choice.ulysses, choice.ring, choice.inner

    assert chosen(9, 3, 2) == (1, 2, "gather")
    assert chosen(28, 4, 8) == (1, 8, "gather")
    assert chosen(32, 32, 8) == (8, 1, "gather")


def test_a_small_budget_asks_for_the_ring_and_a_smaller_one_is_refused() -> None:
    shape, length = AttentionShape(28, 4, 128), 1 << 16
    held = {c.inner: c.held for c in ways(8, [length], shape) if c.ulysses == 1}
    assert held["ring"] < held["gather"]
    assert choose(8, [length], shape, budget=held["gather"] // 2).held <= held["gather"] // 2
    with pytest.raises(ConfigError, match="use more processes"):
        choose(8, [length], shape, budget=1000)


def test_heads_that_cannot_be_dealt_out_evenly_cost_balance() -> None:
    assert evaluate(Layout((1 << 12,), 2, 1), AttentionShape(9, 3, 64), "gather").balance == pytest.approx(0.9)
    assert evaluate(Layout((1 << 12,), 1, 4), AttentionShape(9, 3, 64), "gather").balance > 0.99
    assert evaluate(Layout((1 << 12,), 1, 4, "contiguous"), AttentionShape(9, 3, 64), "gather").balance < 0.6
