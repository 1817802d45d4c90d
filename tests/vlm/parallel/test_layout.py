"""Whatever the numbers, every token has one holder and every allowed pair of tokens is in one block."""

from __future__ import annotations

import random

import pytest
import torch

from vlm.errors import ConfigError
from vlm.parallel.layout import Layout, cut, joined, split_evenly


def layouts() -> list[Layout]:
    rng = random.Random(0)
    found = [Layout((1,), 2, 2), Layout((64,), 1, 4), Layout((7, 1, 30), 3, 2, "contiguous")]
    for _ in range(40):
        documents = tuple(rng.randint(1, 30) for _ in range(rng.randint(1, 6)))
        found.append(Layout(documents, rng.randint(1, 4), rng.randint(1, 4), rng.choice(("contiguous", "zigzag"))))
    return found


@pytest.mark.parametrize("layout", layouts())
def test_every_token_has_one_holder(layout: Layout) -> None:
    rows = torch.cat([layout.rows(rank) for rank in range(layout.size)])
    assert sorted(rows.tolist()) == list(range(layout.length))
    assert [len(layout.rows(rank)) for rank in range(layout.size)] == layout.counts()
    assert all(bool((layout.owners()[layout.rows(rank)] == rank).all()) for rank in range(layout.size))
    assert max(layout.counts()) - min(layout.counts()) <= 2
    for place in range(layout.ring):
        ranks = range(place * layout.ulysses, (place + 1) * layout.ulysses)
        assert layout.ulysses_counts(place) == [layout.counts()[rank] for rank in ranks]


@pytest.mark.parametrize("layout", layouts())
def test_blocks_cover_every_allowed_pair_once(layout: Layout) -> None:
    document = torch.repeat_interleave(torch.arange(len(layout.documents)), torch.tensor(layout.documents))
    at = torch.arange(layout.length)
    allowed = (document[:, None] == document) & (at[:, None] >= at)
    seen = torch.zeros_like(allowed, dtype=torch.int64)
    held = [torch.cat([torch.arange(*r) for r in [(0, 0), *ranges]]) for ranges in layout.ring_ranges]
    pairs = 0
    for q_place in range(layout.ring):
        for k_place in range(layout.ring):
            for block in layout.blocks(q_place, k_place):
                q, k = held[q_place][slice(*block.q)], held[k_place][slice(*block.k)]
                mask = torch.ones(len(q), len(k), dtype=torch.int64)
                seen[q[:, None], k] += mask.tril() if block.causal else mask
                pairs += block.pairs
    assert torch.equal(seen, allowed.long())
    assert pairs == int(allowed.sum())


@pytest.mark.parametrize("layout", layouts())
def test_positions_restart_with_every_document(layout: Layout) -> None:
    whole = torch.cat([torch.arange(n) for n in layout.documents])
    for rank in range(layout.size):
        assert torch.equal(layout.positions(rank), whole[layout.rows(rank)])


def test_zigzag_balances_the_causal_work() -> None:
    def work(order: str) -> list[int]:
        layout = Layout((4096,), 1, 4, order)
        return [sum(b.pairs for k in range(4) for b in layout.blocks(q, k)) for q in range(4)]

    assert max(work("zigzag")) / min(work("zigzag")) < 1.01
    assert max(work("contiguous")) / min(work("contiguous")) > 6


def test_ranges() -> None:
    assert split_evenly(7, 3) == [(0, 3), (3, 5), (5, 7)]
    assert split_evenly(1, 3) == [(0, 1), (1, 1), (1, 1)]
    assert joined([(0, 2), (2, 2), (2, 4), (5, 6)]) == [(0, 4), (5, 6)]
    assert cut([(10, 13), (20, 25)], (2, 5)) == [(12, 13), (20, 22)]


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match="zagzig"):
        Layout((3,), order="zagzig")
    with pytest.raises(ConfigError, match="one token or more"):
        Layout((3, 0))
