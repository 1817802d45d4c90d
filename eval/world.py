"""Worlds of processes that talk over gloo on this machine, forked from one server that has imported everything once."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from vlm.errors import VLMError

MODULES = ("vlm.parallel.model", "transformers.models.llama.modeling_llama")
PATIENCE = 240  # seconds


class WorldError(VLMError):
    """A process of a world failed; the message holds its traceback."""


def run_world(
    target: Callable[..., Any], world: int, *args: Any, modules: Sequence[str] = MODULES, patience: int = PATIENCE
) -> list[Any]:
    """``target(rank, *args)`` in each of ``world`` processes, one thread each; what each returned, by rank.

    Args:
        target: A function of a module, as processes find it by name.
        world: Number of processes.
        args: More arguments; they are pickled.
        modules: What the server imports when it starts, which it does once in the life of this process.
        patience: Seconds that a process may be silent.

    Raises:
        WorldError: One of them failed or did not answer.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    pipes = [context.Pipe(duplex=False) for _ in range(world)]
    with tempfile.TemporaryDirectory(prefix="world-") as folder:
        store = os.path.join(folder, "store")
        children = [
            context.Process(
                target=_main, args=(pipes[rank][1], target, rank, world, store, patience, args), daemon=True
            )
            for rank in range(world)
        ]
        for child in children:
            child.start()
        found, failures = [], []
        for rank, (receiver, _) in enumerate(pipes):
            ok, value = receiver.recv() if receiver.poll(patience) else (False, f"no answer within {patience} s")
            found.append(value)
            failures += [] if ok else [f"process {rank} of {world}: {value}"]
        for child in children:
            child.join(0 if failures else 20)
            child.kill()
    if failures:
        raise WorldError(
            min(failures, key=lambda failure: "by peer" in failure)
        )  # the cause, not what followed from it
    return found


def _main(
    pipe: Any, target: Callable[..., Any], rank: int, world: int, store: str, patience: int, args: tuple[Any, ...]
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=patience)
        )
        pipe.send((True, target(rank, *args)))
        dist.barrier()
        dist.destroy_process_group()
    except Exception:
        pipe.send((False, traceback.format_exc()))
