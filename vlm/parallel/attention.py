"""Exact causal attention over a sequence that several processes hold: heads change hands inside (Ulysses), keys and values outside.

    q, k, v of my tokens ─ Ulysses ─► some heads of the tokens of my ring place ─ inner scheme ─► out ─ Ulysses back ─► out of my tokens

Two inner schemes give the same numbers. "gather" fetches once the keys that my queries need (earlier ones of the same documents, not
all) and keeps them for the backward pass: fewest bytes. "ring" passes everybody's keys around in both passes and never holds more than two
places' worth: least memory. Blocks are joined by log-sum-exp (as in flash attention and ring attention).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from vlm.errors import ConfigError
from vlm.parallel.exchange import Fetch, connected, exchange
from vlm.parallel.kernel import accumulator, attend, attend_backward, join, packed
from vlm.parallel.layout import Block, Layout, Range, rows_in, split_evenly
from vlm.parallel.mesh import Group, Mesh

INNER = ("gather", "ring")


@dataclass(frozen=True)
class ParallelAttention:
    """Attention of one step: the same for all layers.

    Attributes:
        mesh: The processes.
        layout: Who holds which tokens.
        inner: "gather" or "ring".
        keep: Called with (layer, keys, values) of the tokens held here, to fill a cache.
    """

    mesh: Mesh
    layout: Layout
    inner: str = "gather"
    keep: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None

    def __post_init__(self) -> None:
        if self.inner not in INNER:
            raise ConfigError(f"inner={self.inner!r} is not one of {INNER}")
        if (self.layout.ulysses, self.layout.ring) != (self.mesh.ulysses, self.mesh.ring):
            mine, theirs = (f"{x.ulysses} x {x.ring}" for x in (self.mesh, self.layout))
            raise ConfigError(f"the layout is for {theirs} processes, the mesh has {mine}")

    def __call__(
        self,
        q_NHd: torch.Tensor,
        k_NKd: torch.Tensor,
        v_NKd: torch.Tensor,
        *,
        scale: float | None = None,
        layer: int = 0,
    ) -> torch.Tensor:
        """Attention of the tokens held here.

        Args:
            q_NHd: Queries of this process's tokens.
            k_NKd: Their keys; H is a multiple of K.
            v_NKd: Their values.
            scale: Of the scores; 1 / sqrt(d) by default.
            layer: Number of the layer, for `keep`.

        Returns:
            ``[N, H, d]``.
        """
        if self.keep is not None:
            self.keep(layer, k_NKd, v_NKd)
        heads = Heads(q_NHd.shape[1], k_NKd.shape[1], self.mesh.ulysses)
        scale = q_NHd.shape[2] ** -0.5 if scale is None else scale
        q, k, v = self._to_heads(q_NHd, k_NKd, v_NKd, heads)
        if self.mesh.ring == 1:
            out = _Blockwise.apply(q, k, v, None, self._ring_blocks[0], scale)
        elif self.inner == "gather":
            out = _Blockwise.apply(q, connected(k), v, self._fetch, self._gathered_blocks, scale)
        else:
            kv = connected(torch.stack([k.transpose(0, 1), v.transpose(0, 1)]))
            out = _Ring.apply(q, kv, self._ring_blocks, self.mesh.ring_group, self.mesh.r, self.layout.ring_rows, scale)
        return self._to_tokens(out, heads)

    # -- Ulysses: heads for tokens -------------------------------------------------------------------------------------

    @cached_property
    def _counts(self) -> list[int]:
        return self.layout.ulysses_counts(self.mesh.r)

    def _to_heads(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: Heads
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``[my tokens, all heads, d]`` -> ``[tokens of my ring place, my heads, d]``, the keys repeated if my heads do not share them
        evenly. Keys travel beside their values, and what arrives lies as it is needed: nothing is copied again."""
        if self.mesh.ulysses == 1:
            return q, k, v
        u, tokens, d = self.mesh.u, sum(self._counts), q.shape[2]
        h, g = (stop - start for start, stop in (heads.queries[u], heads.keys[u]))
        q = self._deal([q], heads.queries).view(tokens, h, d)
        k, v = self._deal([k, v], heads.keys).view(tokens, 2, g, d).unbind(1)
        repeat = heads.repeat(u)
        return (q, k, v) if repeat is None else (q, k[:, repeat], v[:, repeat])

    def _deal(self, tensors: list[torch.Tensor], shares: list[Range]) -> torch.Tensor:
        """Exchange heads for tokens: ``[my tokens, heads, d]`` each -> ``[tokens, tensors, my heads, d]`` as rows of d."""
        widths = [len(tensors) * (stop - start) for start, stop in shares]
        send = [self._counts[self.mesh.u] * width for width in widths]
        receive = [count * widths[self.mesh.u] for count in self._counts]
        return exchange(_by_share(tensors, shares), send, receive, self.mesh.ulysses_group)

    def _to_tokens(self, out: torch.Tensor, heads: Heads) -> torch.Tensor:
        """``[tokens of my ring place, my heads, d]`` -> ``[my tokens, all heads, d]``."""
        if self.mesh.ulysses == 1:
            return out
        d, mine = out.shape[2], out.shape[1]
        n = self._counts[self.mesh.u]
        widths = [stop - start for start, stop in heads.queries]
        send, receive = [count * mine for count in self._counts], [n * width for width in widths]
        rows = exchange(out.reshape(-1, d), send, receive, self.mesh.ulysses_group)
        if len(set(widths)) == 1:
            return rows.view(len(widths), n, widths[0], d).transpose(0, 1).flatten(1, 2)
        parts = [part.view(n, width, d) for part, width in zip(rows.split(receive), widths, strict=True)]
        return torch.cat(parts, 1)

    # -- gather: the keys that are needed, once --------------------------------------------------------------------------

    @cached_property
    def _fetch(self) -> Fetch:
        """Own keys come first, the later ones before: then all keys before the last queries lie in one piece."""
        me = self.mesh.r
        edges = [0, *accumulate(stop - start for start, stop in self.layout.ring_ranges[me])]
        send = [self.layout.needs[place][me] if place != me else [] for place in range(self.mesh.ring)]
        receive = [rows_in(ranges) if place != me else 0 for place, ranges in enumerate(self.layout.needs[me])]
        return Fetch(list(pairwise(edges))[::-1], send, receive, self.mesh.ring_group)

    @cached_property
    def _gathered_blocks(self) -> list[Block]:
        """My blocks, with keys as rows of what `Fetch` brings."""
        me, blocks, before = self.mesh.r, [], self.layout.ring_rows[self.mesh.r]
        for place, needed in enumerate(self.layout.needs[me]):
            held, offset = (self._fetch.own, 0) if place == me else (needed, before)
            for b in self.layout.blocks(me, place):
                row = _row_in(held, b.k[0]) + offset
                blocks.append(Block(b.q, (row, row + b.k[1] - b.k[0]), b.causal))
            before += self._fetch.receive[place]
        return merged(blocks)

    # -- ring ------------------------------------------------------------------------------------------------------------

    @cached_property
    def _ring_blocks(self) -> list[list[Block]]:
        return [merged(self.layout.blocks(self.mesh.r, place)) for place in range(self.mesh.ring)]


@dataclass(frozen=True)
class Heads:
    """Which heads each Ulysses place works on: query heads in even shares, and the key heads that those need."""

    count: int
    kv: int
    places: int

    def __post_init__(self) -> None:
        if self.count % self.kv:
            raise ConfigError(f"{self.count} query heads do not share {self.kv} key heads evenly")
        if self.places > self.count:
            raise ConfigError(f"{self.count} heads cannot be dealt out to {self.places} processes")

    @cached_property
    def queries(self) -> list[Range]:
        """Query heads per place."""
        return split_evenly(self.count, self.places)

    @cached_property
    def keys(self) -> list[Range]:
        """Key heads per place; a key head goes to every place that needs it."""
        group = self.count // self.kv
        return [(start // group, (stop - 1) // group + 1) for start, stop in self.queries]

    def width(self, place: int) -> int:
        """Heads of q, k and v together."""
        (q_from, q_to), (k_from, k_to) = self.queries[place], self.keys[place]
        return q_to - q_from + 2 * (k_to - k_from)

    def used(self, place: int) -> int:
        """Key heads that a place works with, those counted again that `repeat` repeats."""
        repeat, (first, last) = self.repeat(place), self.keys[place]
        return last - first if repeat is None else len(repeat)

    def repeat(self, place: int) -> list[int] | None:
        """Key head (among those of the place) per query head; None if they are shared evenly as they are."""
        group, (start, stop), (first, last) = self.count // self.kv, self.queries[place], self.keys[place]
        owners = [head // group - first for head in range(start, stop)]
        each, rest = divmod(stop - start, last - first)
        even = not rest and owners == [i // each for i in range(stop - start)]
        return None if even else owners


def _by_share(tensors: list[torch.Tensor], shares: list[Range]) -> torch.Tensor:
    """``[N, H, d]`` each -> rows of d: all of the heads of the first share (token by token, tensor by tensor), then of the second."""
    d, widths = tensors[0].shape[2], [stop - start for start, stop in shares]
    heads = [head for start, stop in shares for head in range(start, stop)]
    if heads != list(range(tensors[0].shape[1])):  # some are in several shares
        order = torch.tensor(heads, device=tensors[0].device)
        tensors = [x.index_select(1, order) for x in tensors]
    if len(set(widths)) == 1:  # one copy does it
        return torch.stack([x.unflatten(1, (-1, widths[0])).transpose(0, 1) for x in tensors], 2).view(-1, d)
    parts = zip(*(x.split(widths, 1) for x in tensors), strict=True)
    return torch.cat([torch.stack(part, 1).view(-1, d) for part in parts])


def merged(blocks: list[Block]) -> list[Block]:
    """The same blocks, neighbouring keys of the same queries made one: fewer to join afterwards."""
    out: list[Block] = []
    for b in sorted(blocks, key=lambda b: (b.q, b.causal, b.k)):
        last = out[-1] if out else None
        if last and last.q == b.q and not last.causal and not b.causal and last.k[1] == b.k[0]:
            out[-1] = Block(b.q, (last.k[0], b.k[1]), causal=False)
        else:
            out.append(b)
    return out


def _row_in(ranges: list[Range], row: int) -> int:
    """Place of ``row`` in ``ranges`` laid end to end."""
    before = 0
    for start, stop in ranges:
        if start <= row < stop:
            return before + row - start
        before += stop - start
    raise ValueError(f"row {row} is not in {ranges}")


class _Partial:
    """Sums blocks up: out and log-sum-exp of the queries so far. Every query has a block: its own token."""

    def __init__(self, q: torch.Tensor) -> None:
        self.out = torch.empty(q.shape, dtype=accumulator(q.dtype), device=q.device)
        self.lse = torch.empty(q.shape[:2], dtype=self.out.dtype, device=q.device)
        self.begun: set[Range] = set()  # the ranges of queries of two blocks are the same, or apart

    def add(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, blocks: list[Block], scale: float) -> None:
        for b in blocks:
            rows, keys = slice(*b.q), slice(*b.k)
            out, lse = attend(q[rows], k[keys], v[keys], causal=b.causal, scale=scale)
            if b.q in self.begun:
                join(self.out[rows], self.lse[rows], out, lse)
            else:
                self.out[rows], self.lse[rows] = out, lse
                self.begun.add(b.q)


def _add_gradients(
    grads: tuple[torch.Tensor, ...], saved: tuple[torch.Tensor, ...], blocks: list[Block], scale: float
) -> None:
    """Add the share of ``blocks`` to the gradients of q, k and v; ``saved`` is (gradient of out, q, k, v, out, lse)."""
    grad, q, k, v, out, lse = saved
    for b in blocks:
        rows, keys = slice(*b.q), slice(*b.k)
        tensors = (grad[rows], q[rows], k[keys], v[keys], out[rows], lse[rows])
        found = attend_backward(*tensors, causal=b.causal, scale=scale)
        for total, share, where in zip(grads, found, (rows, keys, keys), strict=True):
            total[where].add_(share)


class _Blockwise(torch.autograd.Function):
    """All keys at once: those that are here, after those that others hold have been fetched."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        fetch: Fetch | None,
        blocks: list[Block],
        scale: float,
    ) -> torch.Tensor:
        if fetch is not None:
            k, v = fetch.there(k, v).unbind(1)
        q, k, v = packed(q), packed(k), packed(v)
        sums = _Partial(q)
        sums.add(q, k, v, blocks, scale)
        out = sums.out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, sums.lse)
        ctx.fetch, ctx.blocks, ctx.scale = fetch, blocks, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        if ctx.fetch is None and ctx.blocks == [Block((0, len(q)), (0, len(k)), causal=True)]:
            return *attend_backward(grad, q, k, v, out, lse, causal=True, scale=ctx.scale), None, None, None
        dtype = accumulator(q.dtype)
        dq, dkv = q.new_zeros(q.shape, dtype=dtype), k.new_zeros(len(k), 2, *k.shape[1:], dtype=dtype)
        _add_gradients((dq, *dkv.unbind(1)), (grad, q, k, v, out, lse), ctx.blocks, ctx.scale)
        dk, dv = dkv.unbind(1) if ctx.fetch is None else ctx.fetch.back(dkv, k.dtype)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


class _Ring(torch.autograd.Function):
    """Keys and values ``[2, K, N, d]`` travel around; on the way back their gradients travel with them."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        kv: torch.Tensor,
        blocks: list[list[Block]],
        group: Group,
        place: int,
        rows: list[int],
        scale: float,
    ) -> torch.Tensor:
        q, travelling, places = packed(q), kv, len(rows)
        sums = _Partial(q)
        for hop in range(places):
            here = (place - hop) % places
            coming = _Pass(travelling, rows[(here - 1) % places], group, place) if hop < places - 1 else None
            sums.add(q, *_by_token(travelling), blocks[here], scale)
            if coming is not None:
                travelling = coming.wait()
        out = sums.out.to(q.dtype)
        ctx.save_for_backward(q, kv, out, sums.lse)
        ctx.blocks, ctx.group, ctx.place, ctx.rows, ctx.scale = blocks, group, place, rows, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None, None, None, None]:
        q, kv, out, lse = ctx.saved_tensors
        places, travelling = len(ctx.rows), kv
        grad_q = q.new_zeros(q.shape, dtype=accumulator(q.dtype))
        # Gradients travel with their keys, one hop behind: on their way while the next are computed. The last hop brings mine home.
        gathering: _Pass | None = None
        for hop in range(places):
            here = (ctx.place - hop) % places
            before = ctx.rows[(here - 1) % places]
            coming = _Pass(travelling, before, ctx.group, ctx.place) if hop < places - 1 else None
            grad_kv = travelling.new_zeros(travelling.shape, dtype=accumulator(q.dtype))
            saved = (grad, q, *_by_token(travelling), out, lse)
            _add_gradients((grad_q, *_by_token(grad_kv)), saved, ctx.blocks[here], ctx.scale)
            if gathering is not None:
                grad_kv += gathering.wait()
            gathering = _Pass(grad_kv, before, ctx.group, ctx.place)
            if coming is not None:
                travelling = coming.wait()
        assert gathering is not None
        return grad_q.to(q.dtype), gathering.wait().to(kv.dtype), None, None, None, None, None


def _by_token(x_2KNd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values, or their gradients, ``[N, K, d]`` each, without a copy."""
    return x_2KNd[0].transpose(0, 1), x_2KNd[1].transpose(0, 1)


class _Pass:
    """Keys and values ``[2, K, N, d]`` go to the next place while those of the one before come."""

    def __init__(self, x: torch.Tensor, rows: int, group: Group, place: int) -> None:
        ranks = dist.get_process_group_ranks(group)
        following, before = ranks[(place + 1) % len(ranks)], ranks[place - 1]
        self.sent, self.received = x.contiguous(), x.new_empty(*x.shape[:2], rows, x.shape[3])
        self.work = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, self.sent, following, group),
                dist.P2POp(dist.irecv, self.received, before, group),
            ]
        )

    def wait(self) -> torch.Tensor:
        """What came."""
        for work in self.work:
            work.wait()
        return self.received
