"""Runs a function in several processes that talk over gloo, forked from one server that has torch imported already."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["vlm.parallel.model", "transformers.models.llama.modeling_llama", "tests.tiny"])


def run_world(target: Callable[..., Any], world: int, folder: Path, *args: Any) -> list[Any]:
    """``target(rank, *args)`` in each of ``world`` processes; what each returned, by rank.

    Raises:
        AssertionError: A process failed; the message holds its traceback.
    """
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(world)]
    store = folder / f"store-{target.__name__}-{world}"
    children = [
        CONTEXT.Process(target=_main, args=(pipes[rank][1], target, rank, world, str(store), args), daemon=True)
        for rank in range(world)
    ]
    for child in children:
        child.start()
    found, failures = [], []
    for rank, (receiver, _) in enumerate(pipes):
        ok, value = receiver.recv() if receiver.poll(240) else (False, "no answer within 240 s")
        found.append(value)
        failures += [] if ok else [f"process {rank} of {world}: {value}"]
    for child in children:
        child.join(0 if failures else 20)
        child.kill()
    failures.sort(key=lambda failure: "by peer" in failure)  # the cause first
    assert not failures, failures[0]
    return found


def _main(pipe: Any, target: Callable[..., Any], rank: int, world: int, store: str, args: tuple[Any, ...]) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=120)
        )
        pipe.send((True, target(rank, *args)))
        dist.barrier()
        dist.destroy_process_group()
    except Exception:
        pipe.send((False, traceback.format_exc()))
