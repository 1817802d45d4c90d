"""Measure what packing and the chunked loss are worth and write docs/results/bench-training.json (`make bench-training`).

1. Sixteen documents of lognormal length, forward and backward: padded into a batch; packed by transformers (its own mask over the
   packed sequence); packed by `SequenceParallel`, attention per document. The same loss must come out.
2. The loss of 8192 tokens over 49152 words: all logits at once, or some rows at a time. Time and peak memory.
3. A whole training step of SmolLM2-135M's shape: transformers' own loss against ours.

Weights are random, shapes are SmolLM2's. Every measurement is a process of its own, of 1 and 3 the second step in it; rivals are
interleaved. 1 and 2 have one thread and are CPU time; 3 has all cores and is wall time, because that is what a training waits for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it works in a clone without an installation

TASKS = {
    "documents": ("padded", "transformers", "packed"),
    "head": ("plain", "chunked"),
    "step": ("transformers", "ours"),
}
VOCABULARY = 49152
STEP_TOKENS = 2048


def lengths() -> list[int]:
    """About 3300 tokens in 16 documents that fill 31 % of a padded batch."""
    import numpy as np

    return [int(n) for n in np.random.default_rng(129).lognormal(5.0, 0.8, 16)]


def build(layers: int) -> Any:
    """`layers` layers of SmolLM2-135M, random."""
    from eval.text_model import text_model

    return text_model(
        {
            "vocab_size": VOCABULARY, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": layers, "num_attention_heads": 9,
            "num_key_value_heads": 3, "max_position_embeddings": 8192,
        }
    )  # fmt: skip


def documents(variant: str) -> Any:
    """(forward and backward as a function, real tokens) of the first comparison."""
    import torch

    from vlm.parallel.mesh import Mesh
    from vlm.parallel.model import SequenceParallel

    model, sizes = build(6), lengths()
    torch.manual_seed(1)
    rows = [torch.randint(3, VOCABULARY, (n,)) for n in sizes]
    if variant == "padded":
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
        return lambda: model.language_model(**inputs, use_cache=False), sum(sizes)
    ids = torch.cat(rows)[None]
    starts = torch.tensor([sum(sizes[:i]) for i in range(len(sizes))])
    if variant == "transformers":
        labels = ids.clone()
        labels[0, starts] = -100  # the first token of a document is nobody's target
        positions = torch.cat([torch.arange(n) for n in sizes])[None]
        return lambda: model.language_model(input_ids=ids, position_ids=positions, labels=labels, use_cache=False), sum(
            sizes
        )
    shared = SequenceParallel(model, Mesh())
    return lambda: shared(input_ids=ids, labels=ids, documents=sizes), sum(sizes)


def head(variant: str) -> Any:
    """The same for the loss alone."""
    import torch
    from torch import nn

    from vlm.loss import head_loss

    torch.manual_seed(0)
    layer, hidden = nn.Linear(576, VOCABULARY, bias=False), torch.randn(8192, 576, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (8192,))

    def run() -> Any:
        if variant == "plain":
            total = nn.functional.cross_entropy(layer(hidden), targets, reduction="sum")
        else:
            total = head_loss(layer, hidden, targets)
        return type("Out", (), {"loss": total / 8192})

    return run, 8192


def step(variant: str) -> Any:
    """The same for a whole model."""
    import torch

    model = build(30)
    torch.manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (1, STEP_TOKENS))
    if variant == "transformers":
        return lambda: model.language_model(input_ids=ids, labels=ids, use_cache=False), STEP_TOKENS
    return lambda: model(input_ids=ids, labels=ids), STEP_TOKENS


def child(task: str, variant: str) -> None:
    """Measure one variant in this process; prints one JSON line."""
    import resource
    import time

    import torch

    threads = (os.cpu_count() or 1) if task == "step" else 1
    clock = time.perf_counter if task == "step" else time.process_time
    torch.set_num_threads(threads)
    run, tokens = {"documents": documents, "head": head, "step": step}[task](variant)
    torch.randn(1024, 1024) @ torch.randn(1024, 1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(1 if task == "head" else 2):  # a step of a training is never its first
        began = clock()
        loss = run().loss
        loss.backward()
        seconds = clock() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    sys.stdout.write(
        json.dumps({"seconds": seconds, "mb": grown, "loss": float(loss.detach()), "tokens": tokens}) + "\n"
    )


def measure(rounds: int) -> dict[tuple[str, str], list[dict[str, float]]]:
    """All variants, interleaved."""
    from tqdm import tqdm

    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    every = [(task, variant) for _ in range(rounds) for task, variants in TASKS.items() for variant in variants]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for task, variant in tqdm(every, desc="measuring", unit="run"):
        command = [sys.executable, __file__, "--child", task, variant]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        found.setdefault((task, variant), []).append(json.loads(done.stdout.splitlines()[-1]))
    return found


def rows_of(found: dict[tuple[str, str], list[dict[str, float]]]) -> list[Any]:
    """Rows of the results file."""
    from eval.report import row

    def ratio(task: str, ours: str, theirs: str, what: str) -> tuple[float, dict[str, Any]]:
        pairs = [a[what] / b[what] for a, b in zip(found[task, ours], found[task, theirs], strict=True)]
        return statistics.median(pairs), {
            "least": round(min(pairs), 3),
            "largest": round(max(pairs), 3),
            "pairs": len(pairs),
        }

    def apart(task: str, a: str, b: str) -> float:
        return abs(found[task, a][0]["loss"] - found[task, b][0]["loss"])

    rows = []
    sizes = lengths()
    about: dict[str, Any] = {
        "documents": len(sizes),
        "tokens": sum(sizes),
        "filled": round(sum(sizes) / len(sizes) / max(sizes), 2),
        "layers": 6,
    }
    for rival, name, target in (("padded", "padded batch", 4.0), ("transformers", "transformers' packing", 1.7)):
        value, spread = ratio("documents", rival, "packed", "seconds")
        rows.append(row(f"packed, tokens per second / {name}", value, "×", target, **about, **spread))
        rows.append(
            row(f"packed, loss less that of {name}", apart("documents", "packed", rival), "", 1e-5, at_least=False)
        )
    about = {"tokens": 8192, "words": VOCABULARY}
    for what, name, limit in (("mb", "peak memory", 0.20), ("seconds", "time", 1.0)):
        value, spread = ratio("head", "chunked", "plain", what)
        rows.append(row(f"chunked loss, {name} / plain", value, "×", limit, at_least=False, **about, **spread))
    value, spread = ratio("step", "transformers", "ours", "seconds")
    rows.append(
        row(
            "training step, tokens per second / transformers' loss",
            value,
            "×",
            1.15,
            tokens=STEP_TOKENS,
            layers=30,
            clock="wall",
            **spread,
        )
    )
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved repeats")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results", help="folder of the results file")
    parser.add_argument("--child", nargs=2, metavar=("TASK", "VARIANT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    from eval.report import write_results

    rows = rows_of(measure(options.rounds))
    command = f"make bench-training ARGS='--rounds {options.rounds}'" if options.rounds != 3 else "make bench-training"
    write_results("bench-training", rows, command=command, seed=0, out_dir=options.out)


if __name__ == "__main__":
    main()
