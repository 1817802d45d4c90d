"""Poolers: exact counts, values against plain means, spans that cover the video."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.errors import AlignmentError, ConfigError
from vlm.time.slowfast import Pooler, SlowFastPooler, make_pooler

MODES: list[tuple[str, dict[str, Any]]] = [
    ("frame", {}),
    ("frame", {"out_grid": [2, 3]}),
    ("slowfast", {}),
    ("slowfast", {"pool_size": 3}),
    ("tsp", {"pool_sizes": [[8, 1, 1]]}),
    ("tsp", {"pool_sizes": [[2, 2, 2], [3, 4, 1]]}),
    ("mean", {}),
    ("mean", {"over": "time"}),
    ("mean", {"over": "all"}),
    ("segments", {}),
]
CHANGES: list[tuple[str, dict[str, Any]]] = [("changes", {}), ("changes", {"out_grid": [2, 3]})]
modes = pytest.mark.parametrize(("mode", "options"), MODES, ids=str)  # tokens are means
all_modes = pytest.mark.parametrize(("mode", "options"), [*MODES, *CHANGES], ids=str)


def features(num_frames: int, grid: tuple[int, int], width: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_frames, grid[0] * grid[1], width, generator=generator, dtype=torch.float64)


def cut(num_frames: int) -> list[int]:
    """Segments of 1, 2, 3, ... frames that sum to ``num_frames``."""
    pieces: list[int] = []
    while sum(pieces) < num_frames:
        pieces.append(min(len(pieces) + 1, num_frames - sum(pieces)))
    return pieces


def test_356_tokens_of_lita() -> None:
    pooler = SlowFastPooler()
    assert pooler.slow_frames(100) == [0, 33, 66, 99]
    assert pooler.count(100, (16, 16)) == 356
    x = features(100, (16, 16))
    tokens = pooler(x, (16, 16))
    assert tokens.shape == (356, 5)
    assert torch.allclose(tokens[:100], x.mean(1))
    frame, row, column = 2, 3, 5
    patch = x[66].view(16, 16, 5)[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((0, 1))
    assert torch.allclose(tokens[100 + frame * 64 + row * 8 + column], patch)


def test_slow_tokens_alone_are_the_rest_of_both() -> None:
    x, alone = features(100, (16, 16)), make_pooler("slowfast", fast=False)
    assert alone.count(100, (16, 16)) == 256 and alone.groups(100, (16, 16)) == [64] * 4
    whole = alone(x, (16, 16))
    assert torch.equal(whole, SlowFastPooler()(x, (16, 16))[100:])
    parts = [alone.part(x[a:b], a, 100, (16, 16)) for a, b in ((0, 30), (30, 100))]
    assert torch.equal(torch.cat(parts), whole)
    assert alone.tokens_of(30, 100, 100, (16, 16)) == list(range(64, 256))


@pytest.mark.parametrize("pool_size", [1, 2, 4])
def test_slow_tokens_equal_the_grid_when_it_divides(pool_size: int) -> None:
    assert make_pooler("slowfast", pool_size=pool_size).count(100, (16, 16)) == 100 + 256


@pytest.mark.parametrize(
    ("num_frames", "grid", "count"),
    [(1, (4, 4), 1 + 4), (3, (4, 4), 3 + 3 * 4), (10, (5, 7), 10 + 4 * 3 * 4), (4, (1, 1), 4 + 4)],
)
def test_slowfast_on_odd_shapes(num_frames: int, grid: tuple[int, int], count: int) -> None:
    pooler = make_pooler("slowfast")
    assert pooler.count(num_frames, grid) == count == len(pooler(features(num_frames, grid), grid))


def test_tsp_counts_of_vila() -> None:
    pooler = make_pooler("tsp", pool_sizes=[[8, 1, 1]])
    assert pooler.count(256, (16, 16)) == 256 // 8 * 256
    assert pooler.groups(16, (16, 16)) == [256, 256]
    x = features(16, (4, 4))
    assert torch.allclose(pooler(x, (4, 4)), x.view(2, 8, 16, 5).mean(1).flatten(0, 1))


def test_tsp_equals_average_pooling_without_padding() -> None:
    x = features(7, (5, 6))
    expected = torch.nn.functional.avg_pool3d(
        x.view(7, 5, 6, 5).permute(3, 0, 1, 2)[None], (2, 3, 4), ceil_mode=True, count_include_pad=False
    )
    tokens = make_pooler("tsp", pool_sizes=[[2, 3, 4]])(x, (5, 6))
    assert torch.allclose(tokens, expected[0].permute(1, 2, 3, 0).flatten(0, 2))


def test_strict_tsp_refuses_what_vila_refuses() -> None:
    with pytest.raises(ConfigError, match="10 frames cannot be pooled by 8"):
        make_pooler("tsp", strict=True)(features(10, (2, 2)), (2, 2))


def test_segments_are_averaged() -> None:
    x = features(6, (2, 3))
    tokens = make_pooler("segments")(x, (2, 3), [1, 3, 2])
    assert torch.allclose(tokens, torch.cat([x[:1].mean(0), x[1:4].mean(0), x[4:].mean(0)]))
    spans = make_pooler("segments").spans(np.array([0, 1, 2, 3, 5, 8, 13.0]), (2, 3), [1, 3, 2])
    assert spans[[0, 6, 12]].tolist() == [[0, 1], [1, 5], [5, 13]]


def test_frame_mode_keeps_everything_or_shrinks_each_frame() -> None:
    x = features(3, (4, 6))
    assert torch.equal(make_pooler("frame")(x, (4, 6)), x.flatten(0, 1))
    small = make_pooler("frame", out_grid=(2, 3))(x, (4, 6))
    assert torch.allclose(small, x.view(3, 2, 2, 3, 2, 5).mean((2, 4)).flatten(0, 2))
    assert make_pooler("frame", out_grid=(8, 8)).count(3, (4, 6)) == 3 * 24


def test_changes_say_what_is_new_and_what_is_gone() -> None:
    """Something that shows in frames 2 and 3, in different places, is in two change tokens only: there and gone."""
    pooler, x = make_pooler("changes"), torch.zeros(6, 4, 1)
    x[2, 0] = x[3, 3] = 8.0
    tokens = pooler(x, (2, 2))
    groups = tokens[:, 0].split(pooler.groups(6, (2, 2)))
    assert [len(g) for g in groups] == [5] * 6 + [1]
    assert [float(g[0]) for g in groups] == [0.0, 0.0, 4.0, 0.0, -4.0, 0.0, 0.0]
    assert torch.equal(torch.stack([g[1:] for g in groups[:-1]]), x[..., 0])
    x[5] = 1.0
    assert pooler(x, (2, 2))[-1] == -2.0
    assert pooler.spans(np.arange(7.0), (2, 2))[-1].tolist() == [6.0, 6.0]


@all_modes
@given(num_frames=st.integers(1, 20), rows=st.integers(1, 6), columns=st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_counts_groups_tokens_and_spans_agree(
    mode: str, options: dict[str, Any], num_frames: int, rows: int, columns: int
) -> None:
    pooler, grid, segments = make_pooler(mode, **options), (rows, columns), cut(num_frames)
    tokens = pooler(features(num_frames, grid), grid, segments)
    edges = np.cumsum(np.linspace(0.0, 3.0, num_frames + 1))
    spans = pooler.spans(edges, grid, segments)
    count = pooler.count(num_frames, grid, segments)
    assert count == sum(pooler.groups(num_frames, grid, segments)) == len(tokens) == len(spans)
    assert (spans[:, 0] <= spans[:, 1]).all()
    covered = np.unique(spans, axis=0)
    assert covered[0, 0] == edges[0]
    assert covered[:, 1].max() == edges[-1]
    for middle in (edges[1:] + edges[:-1]) / 2:
        assert ((spans[:, 0] <= middle) & (middle <= spans[:, 1])).any()


@modes
def test_tokens_hold_only_frames_of_their_span(mode: str, options: dict[str, Any]) -> None:
    """A frame lit alone may change only tokens whose span covers it, and does change at least one."""
    grid, num_frames = (4, 6), 9
    pooler, segments = make_pooler(mode, **options), cut(num_frames)
    spans = pooler.spans(np.arange(num_frames + 1.0), grid, segments)
    for frame in range(num_frames):
        x = torch.zeros(num_frames, 24, 1)
        x[frame] = 1.0
        lit = pooler(x, grid, segments)[:, 0].numpy() > 0
        assert lit.any()
        assert (spans[lit, 0] <= frame).all()
        assert (spans[lit, 1] >= frame + 1).all()


@modes
def test_pooling_before_or_after_an_affine_projector_is_the_same(mode: str, options: dict[str, Any]) -> None:
    projector = torch.nn.Linear(5, 7, dtype=torch.float64)
    pooler, x, segments = make_pooler(mode, **options), features(10, (4, 5)), cut(10)
    after = pooler(projector(x), (4, 5), segments)
    before = projector(pooler(x, (4, 5), segments))
    torch.testing.assert_close(after, before)


@modes
def test_constant_features_stay_constant(mode: str, options: dict[str, Any]) -> None:
    tokens = make_pooler(mode, **options)(torch.full((11, 35, 2), 3.0), (5, 7), cut(11))
    assert torch.allclose(tokens, torch.full_like(tokens, 3.0))


@all_modes
def test_gradients_reach_every_frame(mode: str, options: dict[str, Any]) -> None:
    x = features(9, (4, 4)).requires_grad_()
    make_pooler(mode, **options)(x, (4, 4), cut(9)).square().sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().sum((1, 2)) > 0).all()


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 4), (0, 4, 3)])
def test_features_must_fill_the_grid(shape: tuple[int, ...]) -> None:
    with pytest.raises(AlignmentError, match="2 x 2"):
        make_pooler("frame")(torch.zeros(shape), (2, 2))


@pytest.mark.parametrize(
    ("segments", "error"),
    [(None, ConfigError), ([1, 1], AlignmentError), ([3, 0], AlignmentError), ([], AlignmentError)],
)
def test_segments_must_sum_to_the_frames(segments: list[int] | None, error: type[Exception]) -> None:
    with pytest.raises(error, match="segment"):
        make_pooler("segments").count(3, (2, 2), segments)


def test_edges_must_not_decrease() -> None:
    pooler: Pooler = make_pooler("frame")
    with pytest.raises(ConfigError, match="edges"):
        pooler.spans(np.array([0.0, 2.0, 1.0]), (2, 2))


@pytest.mark.parametrize(
    ("mode", "options", "words"),
    [
        ("cubist", {}, "frame, changes, slowfast"),
        ("mean", {"axis": 1}, "axis"),
        ("mean", {"over": "colour"}, "colour"),
        ("slowfast", {"pool_size": 0}, "pool_size=0"),
        ("tsp", {"pool_sizes": []}, "pool_sizes"),
        ("frame", {"out_grid": [0, 2]}, "out_grid"),
    ],
)
def test_wrong_options_name_the_way_out(mode: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_pooler(mode, **options)
