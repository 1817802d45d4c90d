"""Shared attention equals a plain softmax over a mask of tokens, gradients too, for every way of sharing."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist

from eval.world import run_world
from vlm.errors import ConfigError
from vlm.parallel.attention import Heads, ParallelAttention
from vlm.parallel.layout import Layout
from vlm.parallel.mesh import Mesh, build_mesh

HEADS = ((4, 1), (4, 2), (4, 4), (9, 3))
DOCUMENTS = ((37,), (5, 1, 20, 3, 17), (2,))  # two tokens: most processes hold none


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: tuple[int, ...]) -> torch.Tensor:
    """Masked softmax, written down as in a textbook."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    document = torch.repeat_interleave(torch.arange(len(documents)), torch.tensor(documents))
    at = torch.arange(len(q))
    allowed = (document[:, None] == document) & (at[:, None] >= at)
    scores = torch.einsum("nhd,mhd->hnm", q, k) * q.shape[2] ** -0.5
    return torch.einsum("hnm,mhd->nhd", scores.masked_fill(~allowed, -torch.inf).softmax(-1), v)


def every_way(rank: int, world: int) -> dict[str, float]:
    """Worst error over all cases of this world, by sharing and precision."""
    worst: dict[str, float] = {}
    for ulysses in (u for u in (1, 2, 4, 8) if world % u == 0):
        mesh = build_mesh(ulysses, world // ulysses)
        for (heads, kv), documents, order, inner, dtype in itertools.product(
            HEADS, DOCUMENTS, ("contiguous", "zigzag"), ("gather", "ring"), (torch.float64, torch.float32)
        ):
            if ulysses > heads:
                continue
            torch.manual_seed(0)
            total = sum(documents)
            whole = [torch.randn(total, h, 8, dtype=dtype, requires_grad=True) for h in (heads, kv, kv)]
            grad = torch.randn(total, heads, 8, dtype=dtype)
            wanted = reference(whole[0], whole[1], whole[2], documents)
            wanted_grads = torch.autograd.grad(wanted, whole, grad)
            layout = Layout(documents, mesh.ulysses, mesh.ring, order)
            rows = layout.rows(mesh.rank)
            mine = [x.detach()[rows].requires_grad_() for x in whole]
            out = ParallelAttention(mesh, layout, inner)(*mine)
            grads = torch.autograd.grad(out, mine, grad[rows])
            pairs = [(out, wanted), *zip(grads, wanted_grads, strict=True)]
            error = max(float((a - b[rows]).detach().abs().max()) if len(rows) else 0.0 for a, b in pairs)
            name = f"{mesh.ulysses} x {mesh.ring} {inner} {order} {dtype}"
            worst[name] = max(worst.get(name, 0.0), error)
    return worst


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_every_way_of_sharing_is_exact(world: int) -> None:
    found = run_world(every_way, world, world)
    assert len(found) == world
    for worst in found:
        assert {name.split()[0] for name in worst} >= {"1", str(min(world, 4))}
        for name, error in worst.items():
            assert error <= (1e-12 if "float64" in name else 1e-5), name


def gathered_bytes(rank: int) -> tuple[int, int]:
    """Rows of keys that this process fetches with "gather", and all that others hold."""
    mesh = build_mesh(1, 4)
    attention = ParallelAttention(mesh, Layout((64, 64, 64, 64), 1, 4, "contiguous"), "gather")
    keys = torch.zeros(64, 1, 8)
    got = attention._fetch.there(keys, keys)
    dist.barrier()
    return len(got) - 64, 3 * 64


def test_only_keys_that_are_needed_travel() -> None:
    """Four documents, one per process: nobody needs anything."""
    assert [fetched for fetched, _ in run_world(gathered_bytes, 4)] == [0, 0, 0, 0]


def test_heads_are_dealt_out_whatever_their_number() -> None:
    assert [stop - start for start, stop in Heads(28, 4, 8).queries] == [4, 4, 4, 4, 3, 3, 3, 3]
    assert Heads(9, 3, 2).keys == [(0, 2), (1, 3)]
    assert Heads(9, 3, 2).repeat(0) == [0, 0, 0, 1, 1]
    assert Heads(8, 2, 4).repeat(3) is None
    with pytest.raises(ConfigError, match="4 heads cannot be dealt out to 8"):
        Heads(4, 4, 8)
    with pytest.raises(ConfigError, match="do not share"):
        Heads(9, 2, 1)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match="inner='star'"):
        ParallelAttention(Mesh(), Layout((3,)), "star")
    with pytest.raises(ConfigError, match="1 x 2"):
        ParallelAttention(Mesh(), Layout((3,), 1, 2))
