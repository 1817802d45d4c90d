"""Stage one: frames (and windows of sound) are dealt out over the processes, and what they become moves to whoever holds its place.

Every process knows all token ids, so all maps are computed without a message. Only rows that change owner travel, and so do their gradients.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from vlm.errors import AlignmentError
from vlm.parallel.exchange import exchange
from vlm.parallel.layout import Layout, split_evenly
from vlm.parallel.mesh import Mesh
from vlm.time.slowfast import Grid, Pooler

Segments = Sequence[list[int] | None]


@dataclass(frozen=True)
class Part:
    """Frames of one medium that one process looks at.

    Attributes:
        medium: Which medium of the batch.
        first: First frame that must be looked at; before ``start`` where tokens depend on the frame before.
        start: First frame whose tokens are made here.
        stop: One past the last.
        num_frames: Of the whole medium.
        tokens: Which visual tokens of the whole batch these become, in order.
    """

    medium: int
    first: int
    start: int
    stop: int
    num_frames: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Dealer:
    """Tells which media of a batch a process looks at. Small, so that workers that prepare data can have one.

    Attributes:
        pooler: Of videos.
        image_pooler: Of pictures.
        grid: Positions of a frame when it is pooled.
        size: Processes that share the sequence.
        rank: This process's place.
    """

    pooler: Pooler
    image_pooler: Pooler
    grid: Grid
    size: int = 1
    rank: int = 0

    def frames_of(
        self, frames_per_medium: Sequence[int], is_video: Sequence[bool], segments: Segments | None = None
    ) -> list[list[Part]]:
        """Which frames each process looks at: decode no others."""
        poolers = [self.pooler if video else self.image_pooler for video in is_video]
        shots = None if segments is None else [s if v else None for s, v in zip(segments, is_video, strict=True)]
        return deal_frames(poolers, frames_per_medium, self.grid, self.size, shots)

    def own_media(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A whole batch of `VLMProcessor.collate` with the frames and windows of sound that are this process's. Of pixels that are made
        when they are looked at (`vlm.prepare.Pixels`) no others are made."""
        own = dict(batch)
        if batch.get("frames_per_medium") is not None:
            frames = batch["frames_per_medium"].tolist()
            starts = [0, *accumulate(frames)]
            parts = self.frames_of(frames, batch["is_video"].tolist(), batch.get("segments"))[self.rank]
            for key in ("pixel_values", "vision_features"):
                if batch.get(key) is not None:
                    whole = batch[key]
                    mine = [whole[starts[p.medium] + p.first : starts[p.medium] + p.stop] for p in parts]
                    own[key] = torch.cat([whole[:0], *mine])
        if batch.get("mel") is not None:
            heard = windows(len(batch["mel"]), self.size)[self.rank]
            own["mel"] = batch["mel"][heard.start : heard.stop]
        return own


def deal_frames(
    poolers: Sequence[Pooler], frames: Sequence[int], grid: Grid, size: int, segments: Segments | None = None
) -> list[list[Part]]:
    """Deal the frames of all media out as evenly as the poolers allow.

    Args:
        poolers: For each medium.
        frames: For each medium.
        grid: Positions of a frame when it is pooled.
        size: Number of processes; some may get nothing.
        segments: Frames per shot for each medium.

    Returns:
        For each process its parts, in reading order.
    """
    shots = segments if segments is not None else [None] * len(frames)
    edges = [stop for _, stop in split_evenly(sum(frames), size)]
    dealt: list[list[Part]] = [[] for _ in range(size)]
    before, token = 0, 0
    for medium, (pooler, count, shot) in enumerate(zip(poolers, frames, shots, strict=True)):
        cuts = pooler.cuts(count, grid, shot)
        start = 0
        for rank, edge in enumerate(edges):
            stop = _nearest(cuts, edge - before) if rank < size - 1 else count
            if stop <= start:
                continue
            tokens = tuple(token + i for i in pooler.tokens_of(start, stop, count, grid, shot))
            dealt[rank].append(Part(medium, max(0, start - pooler.looks_back), start, stop, count, tokens))
            start = stop
        before, token = before + count, token + pooler.count(count, grid, shot)
    return dealt


def _nearest(cuts: list[int], frame: int) -> int:
    i = bisect_left(cuts, frame)
    near = cuts[max(0, i - 1) : i + 1]
    return min(near, key=lambda cut: abs(cut - frame))


def move_to_places(
    made_ND: torch.Tensor, made: Sequence[Sequence[int]], places_N: torch.Tensor, layout: Layout, mesh: Mesh
) -> tuple[torch.Tensor, torch.Tensor]:
    """Send the media tokens made here to whoever holds their places.

    Args:
        made_ND: What this process made.
        made: For each process which media tokens it makes, in the order of its rows.
        places_N: Place in the sequence of every media token.
        layout: Who holds which places.
        mesh: The processes.

    Returns:
        Rows of this process's tokens that are media ``[M]``, and what they hold ``[M, D]``.

    Raises:
        AlignmentError: The number of tokens made, or expected, is not that of the places.
    """
    order = [torch.as_tensor(tokens, dtype=torch.int64) for tokens in made]
    if sum(len(tokens) for tokens in order) != len(places_N):
        total = sum(len(tokens) for tokens in order)
        raise AlignmentError(f"the text has {len(places_N)} media placeholders but the media become {total} tokens")
    if len(order[mesh.rank]) != len(made_ND):
        raise AlignmentError(
            f"{len(order[mesh.rank])} media tokens were expected of this process, it made {len(made_ND)}"
        )
    owner_N = layout.owners()[places_N]
    mine = owner_N[order[mesh.rank]]
    send = torch.bincount(mine, minlength=mesh.size).tolist()
    coming = [tokens[owner_N[tokens] == mesh.rank] for tokens in order]
    sent_ND = made_ND[mine.argsort(stable=True).to(made_ND.device)]
    received_MD = exchange(sent_ND, send, [len(tokens) for tokens in coming], mesh.group)
    return torch.searchsorted(layout.rows(mesh.rank), places_N[torch.cat(coming)]), received_MD


def windows(count: int, size: int) -> list[range]:
    """Which windows of sound each process listens to."""
    return [range(start, stop) for start, stop in split_evenly(count, size)]


def token_ranges(lengths: Sequence[int], dealt: Sequence[range]) -> list[list[int]]:
    """The tokens of each process's windows, numbered through the batch."""
    edges = [0, *accumulate(lengths)]
    return [list(range(edges[w.start], edges[w.stop])) if len(w) else [] for w in dealt]
