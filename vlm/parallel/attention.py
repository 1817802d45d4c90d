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
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from vlm.errors import ConfigError
from vlm.parallel.exchange import connected, exchange
from vlm.parallel.kernel import accumulator, attend, attend_backward
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
        kv = torch.stack([k, v], 1)
        if self.inner == "ring" and self.mesh.ring > 1:
            out = _Ring.apply(
                q, connected(kv), self._ring_blocks, self.mesh.ring_group, self.mesh.r, self.layout.ring_rows, scale
            )
        else:
            kv, blocks = self._gather(kv)
            out = _Blockwise.apply(q, kv, blocks, scale)
        return self._to_tokens(out, heads)

    # -- Ulysses: heads for tokens -------------------------------------------------------------------------------------

    @cached_property
    def _counts(self) -> list[int]:
        return self.layout.ulysses_counts(self.mesh.r)

    def _to_heads(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: Heads
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``[my tokens, all heads, d]`` -> ``[tokens of my ring place, my heads, d]``, the keys repeated if my heads do not share them
        evenly."""
        if self.mesh.ulysses == 1:
            return q, k, v
        n, d = q.shape[0], q.shape[2]
        parts = []
        for (q_from, q_to), (k_from, k_to) in zip(heads.queries, heads.keys, strict=True):
            parts += [x.reshape(-1, d) for x in (q[:, q_from:q_to], k[:, k_from:k_to], v[:, k_from:k_to])]
        mine = heads.width(self.mesh.u)
        send = [n * heads.width(u) for u in range(self.mesh.ulysses)]
        receive = [count * mine for count in self._counts]
        rows = exchange(torch.cat(parts), send, receive, self.mesh.ulysses_group)
        h, g = (stop - start for start, stop in (heads.queries[self.mesh.u], heads.keys[self.mesh.u]))
        found: tuple[list[torch.Tensor], ...] = ([], [], [])
        for part, count in zip(rows.split(receive), self._counts, strict=True):
            for out, piece, width in zip(found, part.split([count * h, count * g, count * g]), (h, g, g), strict=True):
                out.append(piece.view(count, width, d))
        q, k, v = (torch.cat(pieces) for pieces in found)
        repeat = heads.repeat(self.mesh.u)
        return (q, k, v) if repeat is None else (q, k[:, repeat], v[:, repeat])

    def _to_tokens(self, out: torch.Tensor, heads: Heads) -> torch.Tensor:
        """``[tokens of my ring place, my heads, d]`` -> ``[my tokens, all heads, d]``."""
        if self.mesh.ulysses == 1:
            return out
        d, mine = out.shape[2], out.shape[1]
        n = self._counts[self.mesh.u]
        widths = [stop - start for start, stop in heads.queries]
        send, receive = [count * mine for count in self._counts], [n * width for width in widths]
        rows = exchange(out.reshape(-1, d), send, receive, self.mesh.ulysses_group)
        parts = [part.view(n, width, d) for part, width in zip(rows.split(receive), widths, strict=True)]
        return torch.cat(parts, 1)

    # -- gather: the keys that are needed, once --------------------------------------------------------------------------

    @cached_property
    def _gathered_blocks(self) -> list[Block]:
        """My blocks, with keys as rows of what `_gather` returns."""
        blocks, offset = [], 0
        for place, needed in enumerate(self.layout.needs[self.mesh.r]):
            for b in self.layout.blocks(self.mesh.r, place):
                row = _row_in(needed, b.k[0]) + offset
                blocks.append(Block(b.q, (row, row + b.k[1] - b.k[0]), b.causal))
            offset += rows_in(needed)
        return merged(blocks)

    def _gather(self, kv: torch.Tensor) -> tuple[torch.Tensor, list[Block]]:
        if self.mesh.ring == 1:
            return kv, self._ring_blocks[0]
        wanted = [self.layout.needs[place][self.mesh.r] for place in range(self.mesh.ring)]
        parts = [kv[start:stop] for ranges in wanted for start, stop in ranges]
        send = [rows_in(ranges) for ranges in wanted]
        receive = [rows_in(ranges) for ranges in self.layout.needs[self.mesh.r]]
        return exchange(torch.cat([kv[:0], *parts]), send, receive, self.mesh.ring_group), self._gathered_blocks

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

    def repeat(self, place: int) -> list[int] | None:
        """Key head (among those of the place) per query head; None if they are shared evenly as they are."""
        group, (start, stop), (first, last) = self.count // self.kv, self.queries[place], self.keys[place]
        owners = [head // group - first for head in range(start, stop)]
        each, rest = divmod(stop - start, last - first)
        even = not rest and owners == [i // each for i in range(stop - start)]
        return None if even else owners


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
    """Sums blocks up: out and log-sum-exp of the queries so far."""

    def __init__(self, q: torch.Tensor) -> None:
        self.out = torch.zeros(q.shape, dtype=accumulator(q.dtype), device=q.device)
        self.lse = torch.full(q.shape[:2], float("-inf"), dtype=self.out.dtype, device=q.device)

    def add(self, q: torch.Tensor, kv: torch.Tensor, blocks: list[Block], scale: float) -> None:
        for b in blocks:
            rows, keys = slice(*b.q), slice(*b.k)
            out, lse = attend(q[rows], kv[keys, 0], kv[keys, 1], causal=b.causal, scale=scale)
            before, after = self.lse[rows], torch.logaddexp(self.lse[rows], lse.to(self.lse.dtype))
            self.out[rows] *= (before - after).exp()[..., None]
            self.out[rows] += out * (lse - after).exp()[..., None]
            self.lse[rows] = after


def _add_gradients(
    grads: tuple[torch.Tensor, torch.Tensor],
    saved: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    blocks: list[Block],
    scale: float,
) -> None:
    """Add the share of ``blocks`` to the gradients of q and kv; ``saved`` is (gradient of out, q, kv, out, lse)."""
    (grad_q, grad_kv), (grad, q, kv, out, lse) = grads, saved
    for b in blocks:
        rows, keys = slice(*b.q), slice(*b.k)
        tensors = (grad[rows], q[rows], kv[keys, 0], kv[keys, 1], out[rows], lse[rows])
        dq, dk, dv = attend_backward(*tensors, causal=b.causal, scale=scale)
        grad_q[rows] += dq
        grad_kv[keys, 0] += dk
        grad_kv[keys, 1] += dv


class _Blockwise(torch.autograd.Function):
    """Blocks whose keys are all here."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, kv: torch.Tensor, blocks: list[Block], scale: float) -> torch.Tensor:
        sums = _Partial(q)
        sums.add(q, kv, blocks, scale)
        out = sums.out.to(q.dtype)
        ctx.save_for_backward(q, kv, out, sums.lse)
        ctx.blocks, ctx.scale = blocks, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        q, kv, out, lse = ctx.saved_tensors
        grads = tuple(torch.zeros_like(x, dtype=accumulator(x.dtype)) for x in (q, kv))
        _add_gradients(grads, (grad, q, kv, out, lse), ctx.blocks, ctx.scale)  # type: ignore[arg-type]
        return grads[0].to(q.dtype), grads[1].to(kv.dtype), None, None


class _Ring(torch.autograd.Function):
    """Keys and values travel around; on the way back their gradients travel with them."""

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
        sums, travelling, places = _Partial(q), kv.contiguous(), len(rows)
        for hop in range(places):
            here = (place - hop) % places
            coming = _Pass(travelling, rows[(here - 1) % places], group, place) if hop < places - 1 else None
            sums.add(q, travelling, blocks[here], scale)
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
        places, travelling = len(ctx.rows), kv.contiguous()
        grad_q = torch.zeros_like(q, dtype=accumulator(q.dtype))
        grad_kv = torch.zeros_like(kv, dtype=accumulator(q.dtype))
        for hop in range(places):
            here = (ctx.place - hop) % places
            before = ctx.rows[(here - 1) % places]
            coming = _Pass(travelling, before, ctx.group, ctx.place) if hop < places - 1 else None
            _add_gradients((grad_q, grad_kv), (grad, q, travelling, out, lse), ctx.blocks[here], ctx.scale)
            grad_kv = _Pass(grad_kv, before, ctx.group, ctx.place).wait()  # the last hop brings mine home
            if coming is not None:
                travelling = coming.wait()
        return grad_q.to(q.dtype), grad_kv.to(kv.dtype), None, None, None, None, None


class _Pass:
    """A tensor goes to the next place while another one comes from the one before."""

    def __init__(self, x: torch.Tensor, rows: int, group: Group, place: int) -> None:
        ranks = dist.get_process_group_ranks(group)
        following, before = ranks[(place + 1) % len(ranks)], ranks[place - 1]
        self.sent, self.received = x.contiguous(), x.new_empty(rows, *x.shape[1:])
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
