"""The ways of `vlm.parallel`: those that the table names, and the one that its planner picks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.distributed as dist

from scripts.mmsp.tower import Shape, System, Tower
from vlm.parallel.attention import ParallelAttention
from vlm.parallel.interface import NAME, use_shared_attention
from vlm.parallel.layout import Layout
from vlm.parallel.mesh import build_mesh
from vlm.parallel.plan import AttentionShape, choose, traffic

Way = tuple[int, int, str, str]  # U, R, inner, order


def planned(shape: Shape, world: int) -> Way:
    """What the planner picks for one node."""
    found = choose(world, [shape.length], attention_shape(shape), node=world)
    return found.ulysses, found.ring, found.inner, found.order


def ways(shape: Shape, world: int) -> list[Way]:
    """The explicit ways of the table, and the planned one."""
    explicit = [(1, world, "gather", "contiguous"), (1, world, "gather", "zigzag"), (1, world, "ring", "zigzag")]
    if world <= shape.heads:
        explicit.insert(0, (world, 1, "gather", "zigzag"))
    best = planned(shape, world)
    return explicit if best in explicit else [best, *explicit]


def label(way: Way) -> str:
    """Name of a way in the table."""
    ulysses, ring, inner, order = way
    if ring == 1:
        return f"ours, Ulysses {ulysses} × 1"
    kind = inner if ulysses == 1 else f"Ulysses + {inner}"
    return f"ours, {kind} {ulysses} × {ring} {order}"


def attention_shape(shape: Shape) -> AttentionShape:
    """The same sizes as the planner takes them, float32."""
    return AttentionShape(shape.heads, shape.kv, shape.width, 4, 4)


def formula(layout: Layout, shape: Shape, inner: str) -> tuple[float, float]:
    """Planned bytes per process and layer: (forward, forward and backward)."""
    forward, backward = (
        sum(map(sum, matrix)) / layout.size for matrix in traffic(layout, attention_shape(shape), inner)
    )
    return forward, forward + backward


def builders(tower: Tower) -> list[tuple[str, Callable[[], System]]]:
    """Names and how to make them."""
    return [(label(way), partial(build, tower, way)) for way in ways(tower.shape, dist.get_world_size())]


def build(tower: Tower, way: Way) -> System:
    """One way, made by all processes together."""
    ulysses, ring, inner, order = way
    use_shared_attention(tower.model)
    layout = Layout((tower.shape.length,), ulysses, ring, order)
    shared = ParallelAttention(build_mesh(ulysses, ring), layout, inner)
    about = {"planned": "yes"} if way == planned(tower.shape, layout.size) else {}
    return System(label(way), layout, NAME, {"shared": shared}, formula(layout, tower.shape, inner), about)
