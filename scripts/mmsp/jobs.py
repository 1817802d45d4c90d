"""What every process of a world does: bytes and exactness of every system, then memory and time of every system."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from scripts.mmsp import ours, rivals
from scripts.mmsp.counting import SavedBytes, SentBytes, cpu_seconds, loopback_bytes
from scripts.mmsp.tower import Shape, System, Tower, plain

PASSES = 3  # in one window of the wire, so that the barriers at its ends do not count for much
Found = dict[str, Any]


def bytes_job(rank: int, shape: Shape, seed: int, wire: bool) -> dict[str, Found]:
    """For every system: bytes sent per layer and errors against one process, or why it refused.

    Args:
        shape: Of the model.
        seed: Of its weights and tokens.
        wire: The loopback interface carries nothing but this world.
    """
    tower = Tower(shape, seed)
    wanted_logits, wanted_gradients = reference(tower)
    found: dict[str, Found] = {}
    for name, system in systems(tower):
        if isinstance(system, str):
            found[name] = {"refused": system}
            continue
        try:
            tower.use(system)
            logits = tower.logits(system, rank)
            tower.loss(logits, system, rank).backward()
        except Exception as error:
            found[name] = {"refused": told(error)}
            continue
        errors = {
            "logit_error": float((logits.detach() - wanted_logits[system.layout.rows(rank)]).abs().max()),
            "gradient_error": gradient_error(tower.gradients(), wanted_gradients),
        }
        found[name] = {**errors, **sent(tower, system, wire), "formula": system.formula, "about": system.about}
    return found


def systems(tower: Tower) -> Iterator[tuple[str, System | str]]:
    """Every system, or the words with which it refuses."""
    for name, build in [*ours.builders(tower), *rivals.builders(tower)]:
        try:
            yield name, build()
        except Exception as error:
            yield name, told(error)


def told(error: BaseException) -> str:
    """An error as one line, without paths of this machine."""
    text = " ".join(str(error).split())
    text = re.sub(r"(?<!\w)/(?:[\w.+-]+/)+([\w.+-]+)", r"\1", text)
    return f"{type(error).__name__}: {text}"[:260]


def reference(tower: Tower) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits ``[S, V]`` and gradients of one process."""
    system = plain(tower.shape)
    tower.use(system)
    logits = tower.logits(system, 0)
    tower.loss(logits, system, 0).backward()
    return logits.detach(), tower.gradients()


def gradient_error(mine: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Largest difference of the gradients, added up over the processes, over the largest gradient of the same parameter."""
    worst = 0.0
    for name, gradient in mine.items():
        dist.all_reduce(gradient)
        worst = max(worst, float((gradient - wanted[name]).abs().max() / wanted[name].abs().max()))
    return worst


def sent(tower: Tower, system: System, wire: bool) -> Found:
    """Bytes of this process, or of all on the wire, per layer: forward, and forward and backward."""
    rank, found = dist.get_rank(), {}
    for key, backward in (("forward", False), ("both", True)):
        counter = SentBytes()
        before = at_rest(wire)
        for _ in range(PASSES):
            with counter:
                loss = tower.loss(tower.logits(system, rank), system, rank)
                if backward:
                    loss.backward()
        passed = at_rest(wire) - before
        layers = PASSES * tower.shape.layers
        found[key] = {"counted": counter.total / layers, "wire": passed / layers if wire else None}
    return found


def at_rest(wire: bool) -> int:
    """Bytes on the wire so far, read while nobody sends."""
    dist.barrier()
    sofar = loopback_bytes() if wire else 0
    dist.barrier()
    return sofar


def cost_job(rank: int, shape: Shape, seed: int, repeats: int) -> dict[str, Found]:
    """For every system: bytes kept for the backward pass, and CPU seconds of each of ``repeats`` interleaved steps."""
    tower = Tower(shape, seed)
    alone = plain(shape)
    ready: dict[str, System] = {alone.name: alone}
    found: dict[str, Found] = {}
    for name, system in systems(tower):
        if isinstance(system, str):
            found[name] = {"refused": system}
        else:
            ready[name] = system
    for name, system in list(ready.items()):
        try:
            found[name] = {"saved": saved(tower, system, rank), "seconds": [], "about": system.about}
        except Exception as error:
            found[name] = {"refused": told(error)}
            del ready[name]
    names = list(ready)
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name]["seconds"].append(seconds(tower, ready[name], rank))
    return found


def saved(tower: Tower, system: System, rank: int) -> int:
    """Bytes that this process keeps in one step, which also warms up."""
    tower.use(system)
    if system.layout.size <= rank:
        return 0
    with SavedBytes([*tower.model.parameters(), *tower.model.buffers()]) as kept:
        loss = tower.loss(tower.logits(system, rank), system, rank)
    loss.backward()
    return kept.total


def seconds(tower: Tower, system: System, rank: int) -> float:
    """CPU seconds of this process in one step; none if only others take part."""
    tower.use(system)
    dist.barrier()
    began = cpu_seconds()
    if rank < system.layout.size:
        tower.loss(tower.logits(system, rank), system, rank).backward()
    used = cpu_seconds() - began
    dist.barrier()
    return used if rank < system.layout.size else 0.0


def together(found: list[dict[str, Found]]) -> dict[str, Found]:
    """The findings of all processes of a world as one: sums and means per process, worst errors, seconds added up."""
    merged: dict[str, Found] = {}
    for name, first in found[0].items():
        each = [one[name] for one in found]
        if any("refused" in one for one in each):
            merged[name] = {"refused": next(one["refused"] for one in each if "refused" in one)}
        elif "seconds" in first:
            total = [sum(turn) for turn in zip(*(one["seconds"] for one in each), strict=True)]
            merged[name] = {
                "saved": max(one["saved"] for one in each),
                "seconds": total,
                "median": statistics.median(total),
                "about": first["about"],
            }
        else:
            merged[name] = {
                **first,
                **{key: max(one[key] for one in each) for key in ("logit_error", "gradient_error")},
            }
            for key in ("forward", "both"):
                counted, wire = statistics.mean(one[key]["counted"] for one in each), first[key]["wire"]
                merged[name][key] = {"counted": counted, "wire": None if wire is None else wire / len(each)}
    return merged
