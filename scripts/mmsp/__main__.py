"""Measure sequence parallelism against its rivals and write docs/results/bench-mmsp.json (`make bench-mmsp`).

The same Llama with the same weights and the same loss runs on 2, 4 and 8 processes over gloo; only its attention is exchanged: the ways
of `vlm.parallel`, DeepSpeed's two Ulysses, yunchang's ring and 2-D attention (with a shim, see rivals.py). What cannot run here is tried,
and its row says why.

1. Bytes per process and layer, counted inside (every collective) and outside (the loopback interface of a private network namespace), and
   the formula; logits and gradients against one process.
2. Bytes of the way from vision sharding to token sharding.
3. Bytes kept for the backward pass, and CPU seconds of all processes per step, interleaved.

U is the hidden tensor of the whole sequence in bytes: tokens · query heads · width · 4.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from eval.report import Row, write_results
from eval.world import run_world
from scripts.mmsp import absent, jobs, reshard
from scripts.mmsp.rows import Case, Findings, rows_of
from scripts.mmsp.tower import Shape
from vlm.errors import ConfigError, VLMError

ROOT = Path(__file__).resolve().parents[2]
WORLDS = (2, 4, 8)
HEADS = ((8, 8), (8, 2), (12, 2), (9, 3))
MANY = (28, 4)  # at 8 processes, which do not divide 28
RIVALS = ("deepspeed", "yunchang", "ring-flash-attn", "megatron-core")
COST = Shape(heads=8, kv=4, width=64, length=2048, layers=4, inner=1408, vocabulary=8192)


def bytes_shape(heads: int, kv: int) -> Shape:
    """Two small layers: bytes per layer do not depend on more."""
    return Shape(heads, kv, width=32, length=512, layers=2, inner=64 * heads, vocabulary=256)


def in_world(target: Callable[..., Any], world: int, *args: Any) -> list[Any]:
    """`run_world` with everything the benchmark needs imported once, and time for a busy machine."""
    return run_world(target, world, *args, modules=["scripts.mmsp.preload"], patience=1800)


def measure(worlds: list[int], repeats: int, seed: int, wire: bool) -> Findings:
    """Everything, world by world."""
    from tqdm import tqdm

    found = Findings(wire)

    def bytes_task(case: Case) -> None:
        shape = bytes_shape(*case[1:])
        found.units[case] = shape.unit
        found.bytes[case] = jobs.together(in_world(jobs.bytes_job, case[0], shape, seed, wire))

    def reshard_task(world: int) -> None:
        found.reshard[world] = reshard.together(in_world(reshard.reshard_job, world, seed, wire))

    def cost_task(world: int) -> None:
        found.cost[world] = jobs.together(in_world(jobs.cost_job, world, COST, seed, repeats))

    def absent_task() -> None:
        found.absent = in_world(absent.absent_job, 2)[0]

    cases = [(world, *heads) for world in worlds for heads in ((*HEADS, MANY) if world == 8 else HEADS)]
    tasks = [(f"bytes, P = {case[0]}, {case[1]}/{case[2]} heads", partial(bytes_task, case)) for case in cases]
    tasks += [(f"re-shard, P = {world}", partial(reshard_task, world)) for world in worlds if world in reshard.MADE]
    tasks += [(f"memory and time, P = {world}", partial(cost_task, world)) for world in worlds]
    tasks.append(("rivals that cannot run here", partial(absent_task)))
    with tqdm(tasks, unit="part") as bar:
        for name, task in bar:
            bar.set_description(name)
            task()
    return found


def private_network() -> list[str] | str:
    """The command that gives another one a network of its own, or why there is none."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return "`unshare` and `ip` (util-linux, iproute2) are not installed"
    said = ""
    for command in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        done = subprocess.run([*command, "ip", "link", "set", "lo", "up"], capture_output=True, text=True)
        if done.returncode == 0:
            return command
        said = done.stderr.strip()
    return said or "`unshare --net` is not permitted"


def enter(command: list[str]) -> None:
    """Become the same program in a network of its own."""
    again = [sys.executable, "-m", "scripts.mmsp", *sys.argv[1:], "--inside"]
    os.execvp(command[0], [*command, "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *again])


def facts(options: argparse.Namespace, load: list[float], wire: str) -> dict[str, Any]:
    """What holds for all rows."""

    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    return {
        "bytes": "Llama, 2 layers, 512 tokens, heads 32 wide, float32",
        "memory_and_time": "Llama, 4 layers, 512 channels, 8/4 heads, 8192 words, 2048 tokens, float32, torch's cross entropy",
        "re_shard": "2048 tokens of 64 channels, made unevenly",
        "shim": "yunchang: CPU kernel swapped in, gradients of its ring put in order; DeepSpeed: shared-memory all-reduce not built",
        "rivals": {name: version(name) for name in RIVALS},
        "repeats": options.repeats,
        "threads_per_process": 1,
        "wire": wire,
        "load": load,
    }


def show(rows: list[Row]) -> None:
    """The rows with a bar."""
    for r in (r for r in rows if r["target"]):
        value = "–" if r["value"] is None else f"{r['value']:.4g} {r['unit']}"
        print(f"{r['name']:84} {value:>12} {r['target']:>8} {({True: 'holds', False: 'MISSED'}).get(r['holds'], '')}")


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.mmsp", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 and 4 processes, one repeat")
    parser.add_argument("--worlds", type=int, nargs="+", choices=WORLDS, help="numbers of processes")
    parser.add_argument("--repeats", type=int, help="interleaved steps that are timed (5)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and tokens")
    parser.add_argument("--out", default=str(ROOT / "docs/results"), help="folder of the results")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.worlds = sorted(set(options.worlds or (WORLDS[:2] if options.quick else WORLDS)))
    options.repeats = options.repeats if options.repeats is not None else 1 if options.quick else 5
    if options.repeats < 1:
        raise ConfigError(f"--repeats {options.repeats} must be 1 or more")
    return options


def run() -> None:
    """The whole benchmark."""
    given = " ".join(arg for arg in sys.argv[1:] if arg != "--inside")
    options = parse()
    wire = "private network namespace"
    if not options.inside:
        network = private_network()
        if isinstance(network, list):
            enter(network)
        wire = f"not read: {network}"
        print(f"The wire is left out, bytes are only counted inside: {network}")
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    if options.inside:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    load = [os.getloadavg()[0]]
    found = measure(options.worlds, options.repeats, options.seed, options.inside)
    load.append(os.getloadavg()[0])
    rows = rows_of(found)
    command = f"make bench-mmsp ARGS='{given}'" if given else "make bench-mmsp"
    setting = facts(options, load, wire)
    path = write_results("bench-mmsp", rows, command=command, seed=options.seed, setting=setting, out_dir=options.out)
    show(rows)
    if load[0] > 1.5:
        print(f"NOISY: the load was {load[0]:.1f} before this began; CPU seconds mean little")
    print(path)


if __name__ == "__main__":
    try:
        run()
    except VLMError as error:
        sys.exit(str(error))
