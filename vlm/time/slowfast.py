"""Poolers: connector output of T frames -> the N visual tokens the language model reads, each with its [start, end].

Pooling is a mean over rectangles of the (frame, row, column) box (all modes but `changes`), so it commutes with an affine projector:
it may run before or after. Where a box does not divide evenly the last rectangle is smaller and its mean is over what is really
there: nothing is padded.

Shapes: T frames, P = rows x columns grid positions, D width, N tokens out. Tokens are in (frame, row, column) order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm.errors import AlignmentError, ConfigError

Grid = tuple[int, int]


class Pooler(ABC):
    """Turns frames into tokens. ``segments`` (frames per segment, summing to T) matters to mode ``segments`` only.

    Attributes:
        closing: The last group stands after the last frame: it begins when the video ends.
        looks_back: Frames before its own that a token depends on.
    """

    closing = False
    looks_back = 0

    @abstractmethod
    def _blocks(self, num_frames: int, grid: Grid, segments: list[int] | None) -> list[tuple[int, int, int]]:
        """(first frame, one past the last frame, number of tokens) of each run of tokens with the same span."""

    @abstractmethod
    def _pool(self, x_TRCD: Tensor, segments: list[int] | None) -> Tensor:
        """Tokens ``[N, D]`` in the order of `_blocks`."""

    def groups(self, num_frames: int, grid: Grid, segments: list[int] | None = None) -> list[int]:
        """Numbers of tokens, summing to `count`; a textual time may be put before each group."""
        return [count for _, _, count in self._blocks(num_frames, grid, segments)]

    def count(self, num_frames: int, grid: Grid, segments: list[int] | None = None) -> int:
        """Number of tokens N made of ``num_frames`` frames."""
        return sum(n for _, _, n in self._blocks(num_frames, grid, segments))

    def spans(self, frame_edges: np.ndarray, grid: Grid, segments: list[int] | None = None) -> np.ndarray:
        """``float64 [N, 2]``: seconds covered by each token.

        Args:
            frame_edges: ``[T + 1]`` seconds, not decreasing; frame i covers ``frame_edges[i]`` to
                ``frame_edges[i + 1]``.
        """
        edges = np.asarray(frame_edges, dtype=np.float64)
        if edges.ndim != 1 or len(edges) < 2 or (np.diff(edges) < 0).any():
            raise ConfigError(f"frame edges must be at least two seconds that do not decrease, got shape {edges.shape}")
        blocks = self._blocks(len(edges) - 1, grid, segments)
        bounds = np.array([(edges[first], edges[last]) for first, last, _ in blocks])
        return np.repeat(bounds, [n for _, _, n in blocks], axis=0)

    def cuts(self, num_frames: int, grid: Grid, segments: list[int] | None = None) -> list[int]:
        """Frames before which a video may be cut into parts that are pooled each for itself (see `part`); 0 and T among them."""
        inside = {t for first, last, _ in self._blocks(num_frames, grid, segments) for t in range(first + 1, last)}
        return [t for t in range(num_frames + 1) if t not in inside]

    def tokens_of(
        self, start: int, stop: int, num_frames: int, grid: Grid, segments: list[int] | None = None
    ) -> list[int]:
        """Which of the N tokens the frames ``start`` to ``stop`` (two of `cuts`) make, in order."""
        found: list[int] = []
        token = 0
        for first, last, count in self._blocks(num_frames, grid, segments):
            if start <= first and last <= stop and (first < stop or stop == num_frames):
                found += range(token, token + count)
            token += count
        return found

    def part(self, x_TPD: Tensor, start: int, num_frames: int, grid: Grid, segments: list[int] | None = None) -> Tensor:
        """The tokens of some frames of a longer video, as many and in the order of `tokens_of`.

        Args:
            x_TPD: Features of the frames from ``start - looks_back`` (or 0) on, up to one of `cuts`.
            start: First frame whose tokens are wanted, one of `cuts`.
            num_frames: T of the whole video.
        """
        own = None
        if segments is not None:
            ends = np.cumsum(segments).tolist()
            own = [n for n, end in zip(segments, ends, strict=True) if start < end <= start + len(x_TPD)]
        return self(x_TPD, grid, own)

    def __call__(self, x_TPD: Tensor, grid: Grid, segments: list[int] | None = None) -> Tensor:
        """Tokens ``[N, D]`` of features ``[T, rows * columns, D]``.

        Raises:
            AlignmentError: The features do not fill the grid, or the segments do not sum to T.
        """
        if x_TPD.ndim != 3 or x_TPD.shape[0] < 1 or x_TPD.shape[1] != grid[0] * grid[1]:
            raise AlignmentError(
                f"features of shape {tuple(x_TPD.shape)} do not fill a grid of {grid[0]} x {grid[1]} per frame"
            )
        return self._pool(x_TPD.unflatten(1, grid), segments)


class FramePooler(Pooler):
    """Every position of every frame; with ``out_grid`` each frame is first averaged down to that grid.

    Args:
        out_grid: (rows, columns). Cells are those of adaptive average pooling: where they do not divide the grid they
            overlap by one row or column. An axis that is not longer than in ``out_grid`` keeps its length.
    """

    def __init__(self, *, out_grid: Sequence[int] | None = None) -> None:
        if out_grid is not None and (len(out_grid) != 2 or min(out_grid) < 1):
            raise ConfigError(f"out_grid={out_grid!r} must be two positive numbers (rows, columns)")
        self.out_grid = None if out_grid is None else (int(out_grid[0]), int(out_grid[1]))

    def _cells(self, grid: Grid) -> Grid:
        return grid if self.out_grid is None else (min(grid[0], self.out_grid[0]), min(grid[1], self.out_grid[1]))

    def _blocks(self, num_frames: int, grid: Grid, segments: list[int] | None) -> list[tuple[int, int, int]]:
        rows, columns = self._cells(grid)
        return [(t, t + 1, rows * columns) for t in range(num_frames)]

    def _pool(self, x_TRCD: Tensor, segments: list[int] | None) -> Tensor:
        grid = (x_TRCD.shape[1], x_TRCD.shape[2])
        if self._cells(grid) != grid:
            pooled = torch.nn.functional.adaptive_avg_pool2d(x_TRCD.permute(0, 3, 1, 2), self._cells(grid))
            x_TRCD = pooled.permute(0, 2, 3, 1)
        return x_TRCD.flatten(0, 2)


class ChangePooler(FramePooler):
    """As `FramePooler`, and before each frame a token of what is new in it and, negated, of what is gone (ours).

    The token is the mean of the frame less that of the frame before, times √P so that it is as long as other tokens. Nothing comes
    before the first frame; after the last one a token says that everything is gone. When something appears is then a matter of finding
    one token, instead of the first of many.
    """

    closing = True
    looks_back = 1

    def part(self, x_TPD: Tensor, start: int, num_frames: int, grid: Grid, segments: list[int] | None = None) -> Tensor:
        tokens_ND, per_frame = self(x_TPD, grid), self._blocks(1, grid, None)[0][2]
        first = per_frame if start else 0  # the tokens of the frame before are somebody else's
        whole = start + len(x_TPD) - (1 if start else 0) == num_frames
        return tokens_ND[first : None if whole else -1]

    def _blocks(self, num_frames: int, grid: Grid, segments: list[int] | None) -> list[tuple[int, int, int]]:
        frames = super()._blocks(num_frames, grid, segments)
        return [(first, last, count + 1) for first, last, count in frames] + [(num_frames, num_frames, 1)]

    def _pool(self, x_TRCD: Tensor, segments: list[int] | None) -> Tensor:
        frames_TPD = super()._pool(x_TRCD, segments).unflatten(0, (len(x_TRCD), -1))
        empty_1D = x_TRCD.new_zeros(1, x_TRCD.shape[-1])
        change_TD = torch.cat([empty_1D, frames_TPD.mean(1), empty_1D]).diff(dim=0) * frames_TPD.shape[1] ** 0.5
        tokens_TPD = torch.cat([change_TD[:-1, None], frames_TPD], 1)
        return torch.cat([tokens_TPD.flatten(0, 1), change_TD[-1:]])


class SlowFastPooler(Pooler):
    """LITA's SlowFast tokens (2403.19046 §3.3): ``[fast, slow]``.

    Fast: the mean over space of every frame, T tokens. Slow: s² frames at ``round(linspace(0, T-1, s²))`` (half to
    even), each averaged over s x s cells. T=100, 16 x 16, s=2 gives 100 + 256 = 356 tokens; with T frames and M
    positions it is T + M whenever s divides the grid. With T < s² every frame is taken once (ours).

    Args:
        pool_size: s, at least 1.
        fast: Without it only the slow tokens are left, M of them (the released code's ``spatial_pool``). `MeanPooler` is the other half.
    """

    def __init__(self, *, pool_size: int = 2, fast: bool = True) -> None:
        if pool_size < 1:
            raise ConfigError(f"pool_size={pool_size} must be at least 1")
        self.pool_size, self.fast = pool_size, fast

    def slow_frames(self, num_frames: int) -> list[int]:
        """Indices of the frames of the slow branch."""
        picks = np.round(np.linspace(0, num_frames - 1, self.pool_size**2)).astype(int)
        return np.unique(picks).tolist()

    def groups(self, num_frames: int, grid: Grid, segments: list[int] | None = None) -> list[int]:
        """All fast tokens together, then one group per slow frame."""
        slow = [n for _, _, n in self._blocks(num_frames, grid, segments)[num_frames if self.fast else 0 :]]
        return [num_frames, *slow] if self.fast else slow

    def _blocks(self, num_frames: int, grid: Grid, segments: list[int] | None) -> list[tuple[int, int, int]]:
        cells = -(-grid[0] // self.pool_size) * -(-grid[1] // self.pool_size)
        fast = [(t, t + 1, 1) for t in range(num_frames)] if self.fast else []
        return fast + [(t, t + 1, cells) for t in self.slow_frames(num_frames)]

    def part(self, x_TPD: Tensor, start: int, num_frames: int, grid: Grid, segments: list[int] | None = None) -> Tensor:
        return self._join(x_TPD.unflatten(1, grid), [t - start for t in self.slow_frames(num_frames)])

    def _pool(self, x_TRCD: Tensor, segments: list[int] | None) -> Tensor:
        return self._join(x_TRCD, self.slow_frames(len(x_TRCD)))

    def _join(self, x_TRCD: Tensor, slow_frames: list[int]) -> Tensor:
        slow = x_TRCD[[t for t in slow_frames if 0 <= t < len(x_TRCD)]]
        slow_ND = _pool_box(slow, (1, self.pool_size, self.pool_size)).flatten(0, 2)
        return torch.cat([x_TRCD.mean(dim=(1, 2)), slow_ND]) if self.fast else slow_ND


class TSPPooler(Pooler):
    """VILA's temporal-spatial pooling: means over (frames, rows, columns) boxes, one pass per pool size, concatenated.

    Args:
        pool_sizes: (pt, ph, pw) each; ``[[8, 1, 1]]`` averages 8 frames at full space.
        strict: Reject a number of frames that pt does not divide, as VILA does, instead of averaging a shorter last
            box.
    """

    def __init__(self, *, pool_sizes: Sequence[Sequence[int]] = ((8, 1, 1),), strict: bool = False) -> None:
        if not pool_sizes or any(len(size) != 3 or min(size) < 1 for size in pool_sizes):
            raise ConfigError(f"pool_sizes={pool_sizes!r} must be a list of positive (frames, rows, columns)")
        self.pool_sizes = [(int(t), int(h), int(w)) for t, h, w in pool_sizes]
        self.strict = strict

    def _blocks(self, num_frames: int, grid: Grid, segments: list[int] | None) -> list[tuple[int, int, int]]:
        blocks = []
        for pt, ph, pw in self.pool_sizes:
            if self.strict and num_frames % pt:
                raise ConfigError(f"{num_frames} frames cannot be pooled by {pt}; give a multiple, or strict=False")
            cells = -(-grid[0] // ph) * -(-grid[1] // pw)
            blocks += [(t, min(t + pt, num_frames), cells) for t in range(0, num_frames, pt)]
        return blocks

    def _pool(self, x_TRCD: Tensor, segments: list[int] | None) -> Tensor:
        self._blocks(x_TRCD.shape[0], (1, 1), None)
        return torch.cat([_pool_box(x_TRCD, size).flatten(0, 2) for size in self.pool_sizes])


class MeanPooler(Pooler):
    """A single mean over an axis of the box.

    Args:
        over: ``space`` keeps one token per frame (LITA's ``temporal``), ``time`` one per position (LITA's ``spatial``),
            ``all`` just one.
    """

    def __init__(self, *, over: str = "space") -> None:
        if over not in ("space", "time", "all"):
            raise ConfigError(f"over={over!r} is not one of space, time, all")
        self.over = over

    def _blocks(self, num_frames: int, grid: Grid, segments: list[int] | None) -> list[tuple[int, int, int]]:
        if self.over == "space":
            return [(t, t + 1, 1) for t in range(num_frames)]
        return [(0, num_frames, 1 if self.over == "all" else grid[0] * grid[1])]

    def _pool(self, x_TRCD: Tensor, segments: list[int] | None) -> Tensor:
        if self.over == "space":
            return x_TRCD.mean(dim=(1, 2))
        return x_TRCD.mean(0).flatten(0, 1) if self.over == "time" else x_TRCD.mean(dim=(0, 1, 2))[None]


class SegmentPooler(Pooler):
    """The frames of each segment (a shot, say) averaged: P tokens per segment (ours)."""

    def _blocks(self, num_frames: int, grid: Grid, segments: list[int] | None) -> list[tuple[int, int, int]]:
        ends = np.cumsum(_checked(segments, num_frames)).tolist()
        return [(first, last, grid[0] * grid[1]) for first, last in zip([0, *ends[:-1]], ends, strict=True)]

    def _pool(self, x_TRCD: Tensor, segments: list[int] | None) -> Tensor:
        parts = x_TRCD.split(_checked(segments, x_TRCD.shape[0]))
        return torch.cat([part.mean(0).flatten(0, 1) for part in parts])


POOLERS: dict[str, type[Pooler]] = {
    "frame": FramePooler,
    "changes": ChangePooler,
    "slowfast": SlowFastPooler,
    "tsp": TSPPooler,
    "mean": MeanPooler,
    "segments": SegmentPooler,
}


def make_pooler(mode: str, **options: Any) -> Pooler:
    """A pooler by name.

    Args:
        mode: ``frame`` or ``changes`` (option ``out_grid``), ``slowfast`` (``pool_size``, ``fast``), ``tsp`` (``pool_sizes``, ``strict``),
            ``mean`` (``over``) or ``segments``.
        options: Keyword arguments of the pooler.

    Raises:
        ConfigError: Unknown mode or option.
    """
    if mode not in POOLERS:
        raise ConfigError(f"pooling mode {mode!r} is not one of {', '.join(POOLERS)}")
    try:
        return POOLERS[mode](**options)
    except TypeError as error:
        raise ConfigError(f"pooling mode {mode!r} does not take these options: {options} ({error})") from error


def pooler_of(pooling: Mapping[str, Any]) -> Pooler:
    """The pooler that ``VLMConfig.pooling`` describes; entries for other parts of the model are left out."""
    options = {key: value for key, value in pooling.items() if key not in ("mode", "before_connector", "shots")}
    return make_pooler(pooling["mode"], **options)


def _checked(segments: list[int] | None, num_frames: int) -> list[int]:
    if segments is None:
        raise ConfigError(
            "pooling mode 'segments' needs the number of frames of each segment (vlm.time.shots.find_shots makes them)"
        )
    if sum(segments) != num_frames or min(segments, default=0) < 1:
        raise AlignmentError(
            f"segments {segments} must be positive and sum to {num_frames} frames, not {sum(segments)}"
        )
    return segments


def _pool_box(x_TRCD: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Mean over boxes of ``size`` (frames, rows, columns); the last box of an axis may be smaller."""
    for dim, length in enumerate(size):
        x_TRCD = _pool_axis(x_TRCD, length, dim)
    return x_TRCD


def _pool_axis(x: Tensor, size: int, dim: int) -> Tensor:
    if size == 1:
        return x
    length = x.shape[dim]
    whole = length // size
    parts = [x.narrow(dim, 0, whole * size).unflatten(dim, (whole, size)).mean(dim + 1)] if whole else []
    if whole * size < length:
        parts.append(x.narrow(dim, whole * size, length - whole * size).mean(dim, keepdim=True))
    return torch.cat(parts, dim)
