"""Who holds which tokens of a packed sequence, and which blocks of attention that leaves to whom.

A sequence is one or more documents after each other. Every ring place holds one range of it, or two that balance the causal work
(zigzag); the Ulysses places of a ring place share its rows evenly, in order. All lengths may be uneven, and all maps are computed from
ranges on the host: no mask of tokens is ever built, so what attends to what is exact by construction.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch

from vlm.errors import ConfigError

Range = tuple[int, int]  # [start, stop)
ORDERS = ("contiguous", "zigzag")


@dataclass(frozen=True)
class Block:
    """Queries ``q`` attend to keys ``k`` (rows of their holders): to all of them, or to those not after their own (then q and k are
    the same tokens)."""

    q: Range
    k: Range
    causal: bool

    @property
    def pairs(self) -> int:
        """Query-key pairs that are computed."""
        n = self.q[1] - self.q[0]
        return n * (n + 1) // 2 if self.causal else n * (self.k[1] - self.k[0])


@dataclass(frozen=True)
class Layout:
    """How a sequence is dealt out.

    Attributes:
        documents: Lengths of the documents; they do not attend to each other.
        ulysses: Processes that share the rows of a ring place.
        ring: Ring places.
        order: "contiguous" or "zigzag".
    """

    documents: tuple[int, ...]
    ulysses: int = 1
    ring: int = 1
    order: str = "zigzag"

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ConfigError(f"order={self.order!r} is not one of {ORDERS}")
        if any(n < 1 for n in self.documents):
            raise ConfigError(f"documents={self.documents[:8]} must have one token or more each")

    @property
    def length(self) -> int:
        """Tokens of the sequence."""
        return sum(self.documents)

    @property
    def size(self) -> int:
        """Processes."""
        return self.ulysses * self.ring

    @cached_property
    def starts(self) -> list[int]:
        """Where each document starts, and the end of the last one."""
        return [0, *accumulate(self.documents)]

    @cached_property
    def ring_ranges(self) -> list[list[Range]]:
        """For each ring place the ranges of the sequence that it holds, in order."""
        if self.order == "contiguous":
            return [[piece] for piece in split_evenly(self.length, self.ring)]
        pieces = split_evenly(self.length, 2 * self.ring)
        return [joined([pieces[r], pieces[2 * self.ring - 1 - r]]) for r in range(self.ring)]

    @cached_property
    def ring_rows(self) -> list[int]:
        """Tokens per ring place."""
        return [rows_in(ranges) for ranges in self.ring_ranges]

    @cached_property
    def pairs(self) -> list[int]:
        """Query-key pairs of each ring place: those of its `blocks` with every place, summed up without listing them."""
        return [sum(self._pairs(doc, piece) for doc, piece, _ in self._pieces(place)) for place in range(self.ring)]

    @cached_property
    def needed_rows(self) -> list[int]:
        """Rows of keys that each ring place needs, its own among them: those of `needs`, without listing them."""
        found = []
        for place in range(self.ring):
            last = {doc: stop for doc, (_, stop), _ in self._pieces(place)}
            found.append(sum(stop - self.starts[doc] for doc, stop in last.items()))
        return found

    @cached_property
    def needs(self) -> list[list[list[Range]]]:
        """[q place][k place]: rows of the second whose keys queries of the first attend to."""
        found = []
        for q in range(self.ring):
            latest = {doc: start for doc, (start, _), _ in self._pieces(q)}
            found.append([self._rows_until(latest, k) for k in range(self.ring)])
        return found

    def _rows_until(self, latest: dict[int, int], place: int) -> list[Range]:
        """Rows of a ring place that start not after a given place of their document."""
        pieces = self._pieces(place)
        return joined((row, row + stop - start) for doc, (start, stop), row in pieces if start <= latest.get(doc, -1))

    def ranges(self, rank: int) -> list[Range]:
        """Ranges of the sequence that one process holds, in order."""
        place, u = divmod(rank, self.ulysses)
        return cut(self.ring_ranges[place], split_evenly(self.ring_rows[place], self.ulysses)[u])

    def rows(self, rank: int) -> torch.Tensor:
        """Positions in the sequence of the tokens that one process holds, int64."""
        return torch.cat([torch.arange(0), *(torch.arange(start, stop) for start, stop in self.ranges(rank))])

    def counts(self) -> list[int]:
        """Tokens per process."""
        return [rows_in(self.ranges(rank)) for rank in range(self.size)]

    def ulysses_counts(self, ring_place: int) -> list[int]:
        """Tokens of each Ulysses place of a ring place."""
        return [stop - start for start, stop in split_evenly(self.ring_rows[ring_place], self.ulysses)]

    def owners(self) -> torch.Tensor:
        """The process that holds each token of the sequence, int64."""
        owner = torch.empty(self.length, dtype=torch.int64)
        for rank in range(self.size):
            for start, stop in self.ranges(rank):
                owner[start:stop] = rank
        return owner

    def positions(self, rank: int) -> torch.Tensor:
        """Position of each held token in its document, int64."""
        starts, rows = torch.tensor(self.starts), self.rows(rank)
        return rows - starts[torch.searchsorted(starts, rows, right=True) - 1]

    def blocks(self, q_place: int, k_place: int) -> list[Block]:
        """What queries of one ring place need of the keys of another (or the same), in rows of the two places."""
        found = []
        keys = self._pieces(k_place)
        for doc, q_range, q_row in self._pieces(q_place):
            for other, k_range, k_row in keys:
                if doc != other or k_range[0] > q_range[0]:
                    continue
                q = (q_row, q_row + q_range[1] - q_range[0])
                k = (k_row, k_row + k_range[1] - k_range[0])
                found.append(Block(q, k, causal=q_range == k_range))
        return found

    def _pairs(self, doc: int, piece: Range) -> int:
        n = piece[1] - piece[0]
        return n * (piece[0] - self.starts[doc]) + n * (n + 1) // 2

    def _pieces(self, place: int) -> list[tuple[int, Range, int]]:
        """The ranges of a ring place cut at document borders: (document, range, first row at this place)."""
        return self._all_pieces[place]

    @cached_property
    def _all_pieces(self) -> list[list[tuple[int, Range, int]]]:
        return [self._cut_at_borders(place) for place in range(self.ring)]

    def _cut_at_borders(self, place: int) -> list[tuple[int, Range, int]]:
        pieces, row = [], 0
        for start, stop in self.ring_ranges[place]:
            while start < stop:
                doc = bisect_right(self.starts, start) - 1
                end = min(stop, self.starts[doc + 1])
                pieces.append((doc, (start, end), row))
                row += end - start
                start = end
        return pieces


def split_evenly(total: int, parts: int) -> list[Range]:
    """``parts`` neighbouring ranges of 0..total whose lengths differ by one at most; the longer ones come first."""
    edges = [0, *accumulate(total // parts + (i < total % parts) for i in range(parts))]
    return list(pairwise(edges))


def rows_in(ranges: Iterable[Range]) -> int:
    """Rows in ``ranges`` together."""
    return sum(stop - start for start, stop in ranges)


def joined(ranges: Iterable[Range]) -> list[Range]:
    """The same ranges without empty ones, neighbours made one."""
    out: list[Range] = []
    for start, stop in ranges:
        if start == stop:
            continue
        if out and out[-1][1] == start:
            out[-1] = (out[-1][0], stop)
        else:
            out.append((start, stop))
    return out


def cut(ranges: Sequence[Range], rows: Range) -> list[Range]:
    """The part of ``ranges`` that lies behind rows ``rows`` of them laid end to end."""
    out, row = [], 0
    for start, stop in ranges:
        first, last = max(rows[0], row), min(rows[1], row + stop - start)
        if first < last:
            out.append((start + first - row, start + last - row))
        row += stop - start
    return out
