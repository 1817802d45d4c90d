"""Runs small trainings in forked children of one server process that has torch imported already, so that a run starts
in a moment.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from train.stages import Recipe, parse_recipe

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["train.run", "train.tiny", "transformers.models.llama.modeling_llama", "accelerate.tracking", "tests.tiny"]
)


def recipe(out: Path, *, steps: tuple[int, ...] = (3, 4), **changes: Any) -> Recipe:
    """A recipe over a very small Llama with dropout; ``changes`` go to the recipe, ``stage={...}`` to every stage."""
    stage = {
        "data": {"call": "train.tiny:backwards", "args": {"size": 101}},
        "batch_size": 8,
        "grad_accum": 2,
        "seq_len": 32,
        **changes.pop("stage", {}),
    }
    names = ("align", "learn", "more")
    rates = ({"lm_head": 1e-2, "model.embed_tokens": 1e-2}, {"*": 3e-3}, {"*": 1e-3})
    stages = [{"name": n, "trainable": r, "steps": s, **stage} for n, r, s in zip(names, rates, steps, strict=False)]
    model = {"call": "train.tiny:model", "args": {"width": 32, "layers": 1, "dropout": 0.1}}
    device = "cpu" if torch.accelerator.is_available() else "auto"
    quiet = {"progress": False, "report_to": [], "workers": 0, "device": device, "save_every": 1}
    return parse_recipe({"model": model, "out": str(out), "stages": stages, **quiet, **changes})


def history(out: Path) -> dict[int, float]:
    """Loss by global step. Steps done twice after a crash must have given the same loss."""
    losses: dict[int, float] = {}
    path = out / "history.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:  # half a line of a killed process
            continue
        loss = float(record["loss"])
        assert losses.setdefault(record["global_step"], loss) == loss, (
            f"step {record['global_step']} differs when repeated"
        )
    return losses


def final_digest(out: Path) -> str:
    """sha256 of the trained parts, as their own file says it; checked."""
    digest = hashlib.sha256((out / "final" / "trainable.safetensors").read_bytes()).hexdigest()
    assert json.loads((out / "final" / "recipe.json").read_text())["sha256"] == digest
    return digest


class Child:
    """One training in a process of its own.

    Args:
        recipe: What to train.
        world: Ranks and where they meet: (rank, world size, port).
        options: More arguments of `child_main`.
    """

    def __init__(self, recipe: Recipe, *, world: tuple[int, int, int] | None = None, **options: Any) -> None:
        self.events, theirs = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(target=child_main, args=(theirs, recipe, world), kwargs=options)
        self.process.start()
        theirs.close()

    def wait_for(self, event: str, timeout: float = 60.0) -> bool:
        """Wait until the child says ``event`` ("stage", "step" or "save"); False if it ended without."""
        while self.events.poll(timeout):
            try:
                if self.events.recv() == event:
                    return True
            except EOFError:
                return False
        raise AssertionError(f"the child did not say {event!r} within {timeout} s")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, unless the child has ended."""
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def join(self, timeout: float = 100.0) -> int:
        """Exit code; negative for a signal."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"the child did not end within {timeout} s")
        return self.process.exitcode


def run(recipe: Recipe, **options: Any) -> int:
    """Train to the end in a child; the exit code."""
    return Child(recipe, **options).join()


def run_world(recipe: Recipe, size: int, log: str = "") -> list[int]:
    """Train with ``size`` processes over gloo; their exit codes."""
    return [child.join() for child in start_world(recipe, size, log)]


def start_world(recipe: Recipe, size: int, log: str = "") -> list[Child]:
    """Start ``size`` processes that train together; with ``log``, each writes our errors to that name plus its rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logs = [f"{log}{rank}" if log else "" for rank in range(size)]
    return [Child(recipe, world=(rank, size, port), log=logs[rank]) for rank in range(size)]


def child_main(
    events: Connection,
    recipe: Recipe,
    world: tuple[int, int, int] | None,
    patience: float = 5.0,
    log: str = "",
    file_limit: int | None = None,
) -> None:
    """What a child does: train, tell the parent about it, and exit as ``python -m train`` would (3 for our own
    errors).
    """
    import train.run
    from train.callbacks import Callback
    from vlm.errors import VLMError

    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    multiprocessing.set_start_method("fork", force=True)  # what a program of its own has on Linux
    torch.set_num_threads(1)
    gc.freeze()  # what the server imported need not be looked at again by every collection
    if world is not None:
        names = ("RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
        os.environ.update(zip(names, map(str, (*world, world[0], world[1], "127.0.0.1")), strict=True))

    class Tell(Callback):
        def on_stage(self, *_: Any) -> None:
            events.send("stage")

        def on_step(self, *_: Any) -> None:
            events.send("step")

        def on_save(self, *_: Any) -> None:
            events.send("save")

    build = train.run.build_callbacks
    train.run.build_callbacks = lambda *args: [*build(*args), Tell()]
    try:
        code = train.run.run(recipe, patience=patience)
    except VLMError as error:
        if log:
            Path(log).write_text(f"{type(error).__name__}: {error}")
        code = 3
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        code = 4
    sys.stderr.flush()
    os._exit(code)
