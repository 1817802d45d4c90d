"""From vision sharding to token sharding: what `vlm.parallel.frames` sends against the pattern of LongVILA's public code.

The pattern (ours in ten lines, after its description; nothing of that code is here): every process makes room for the whole sequence, puts
in what it made, adds all of them up in place and takes its share out again. An all-reduce in place is not seen by autograd, so what ends
at another process than where it was made gets no gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from scripts.mmsp.counting import SentBytes
from scripts.mmsp.jobs import at_rest
from vlm.parallel.frames import move_to_places
from vlm.parallel.layout import Layout
from vlm.parallel.mesh import Mesh, build_mesh

WIDTHS = (48, 64)  # of what the eyes make, and of a token
MADE = {2: (1200, 848), 4: (700, 500, 400, 448)}  # uneven, 2048 in all
ORDERS = ("contiguous", "zigzag")
PASSES = 12  # in one window of the wire: the messages are small
Moved = Callable[[torch.Tensor], torch.Tensor]


def exchanged(made_ND: torch.Tensor, made: list[range], layout: Layout, mesh: Mesh) -> torch.Tensor:
    """Rows of this process by an exchange of those that move."""
    return move_to_places(made_ND, made, torch.arange(layout.length), layout, mesh)[1]


def all_reduce_pattern(made_ND: torch.Tensor, first: int, layout: Layout, rank: int) -> torch.Tensor:
    """Rows of this process by an all-reduce of the whole sequence."""
    whole = made_ND.new_zeros(layout.length, made_ND.shape[1])
    whole[first : first + len(made_ND)] = made_ND
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the gradient is lost, which is what is measured
        dist.all_reduce(whole)
    return whole[layout.rows(rank)]


def moved_rows(made: tuple[int, ...], layout: Layout) -> int:
    """Rows that end at another process than the one that makes them: the least that can be sent."""
    maker = torch.repeat_interleave(torch.arange(len(made)), torch.tensor(made))
    return int((maker != layout.owners()).sum())


def reshard_job(rank: int, seed: int, wire: bool) -> dict[str, dict[str, Any]]:
    """For both orders and both ways: bytes of this process and on the wire (forward and backward) and the projector's gradient error."""
    world = dist.get_world_size()
    made = MADE[world]
    firsts = [0, *accumulate(made)]
    mesh = build_mesh(1, world)
    torch.manual_seed(seed)
    projector, features = nn.Linear(*WIDTHS), torch.randn(sum(made), WIDTHS[0])
    weights = torch.randn(sum(made), WIDTHS[1])
    wanted = torch.autograd.grad((projector(features) * weights).sum(), projector.weight)[0]
    own = features[firsts[rank] : firsts[rank + 1]]
    tokens = [range(first, stop) for first, stop in pairwise(firsts)]
    found = {}
    for order in ORDERS:
        layout = Layout((sum(made),), 1, world, order)
        ways: dict[str, Moved] = {
            "ours": partial(exchanged, made=tokens, layout=layout, mesh=mesh),
            "all-reduce": partial(all_reduce_pattern, first=firsts[rank], layout=layout, rank=rank),
        }
        for name, move in ways.items():
            measured = _measure(move, projector, own, weights[layout.rows(rank)], wanted, wire)
            least = 2 * moved_rows(made, layout) * WIDTHS[1] * 4  # there, and the gradient back
            found[f"{order} {name}"] = {**measured, "least": least}
    return found


def _measure(
    move: Moved, projector: nn.Linear, own: torch.Tensor, weights: torch.Tensor, wanted: torch.Tensor, wire: bool
) -> dict[str, Any]:
    counter = SentBytes()
    before = at_rest(wire)
    for _ in range(PASSES):
        with counter:
            loss = (move(projector(own)) * weights).sum()
            gradient = torch.autograd.grad(loss, projector.weight)[0]
    passed = at_rest(wire) - before
    dist.all_reduce(gradient)
    error = float((gradient - wanted).abs().max() / wanted.abs().max())
    return {"counted": counter.total / PASSES, "wire": passed / PASSES if wire else None, "gradient_error": error}


def together(found: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The findings of all processes of a world: bytes of all of them."""
    return {name: {**first, "counted": sum(one[name]["counted"] for one in found)} for name, first in found[0].items()}
