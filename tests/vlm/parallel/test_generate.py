"""Several processes write what one would have written."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eval.world import run_world
from tests.vlm.parallel.test_model import batch, build
from vlm.errors import ConfigError
from vlm.parallel.cache import ShardedCache
from vlm.parallel.generate import generate
from vlm.parallel.mesh import Mesh, build_mesh
from vlm.parallel.model import SequenceParallel


def prompt(model: Any, dtype: torch.dtype) -> dict[str, Any]:
    inputs = batch(model, dtype, ([("video", 9), ("image", 1)],))
    return {k: v for k, v in inputs.items() if k not in ("labels", "attention_mask")}


def write(rank: int, ulysses: int, ring: int, order: str) -> dict[str, Any]:
    model, twin = (build("changes", 2, torch.float64).eval() for _ in range(2))
    inputs = prompt(model, torch.float64)
    wanted = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, -12:].tolist()
    shared = SequenceParallel(twin, build_mesh(ulysses, ring), order=order)
    mine = shared.own_media(inputs)
    cache = ShardedCache(shared.mesh)
    answer = generate(shared, max_new_tokens=12, cache=cache, **mine)
    stopped = generate(shared, max_new_tokens=12, stop_ids=[wanted[5]], **mine)
    sampled = generate(shared, max_new_tokens=12, temperature=1.0, seed=3, **mine)
    return {
        "wanted": wanted,
        "answer": answer,
        "stopped": stopped,
        "sampled": sampled,
        "bytes": cache.nbytes(),
        "tokens": inputs["input_ids"].shape[1] + 11,
    }


@pytest.mark.parametrize(
    ("ulysses", "ring", "order"), [(1, 1, "zigzag"), (1, 2, "zigzag"), (2, 2, "zigzag"), (4, 1, "contiguous")]
)
def test_the_same_tokens_as_one_process(ulysses: int, ring: int, order: str) -> None:
    found = run_world(write, ulysses * ring, ulysses, ring, order)
    first = found[0]
    for mine in found:
        assert mine["answer"] == first["wanted"]
        assert mine["stopped"] == first["wanted"][: first["wanted"].index(first["wanted"][5])]
        assert mine["sampled"] == first["sampled"]
    per_token = 2 * 2 * 2 * 12 * 8  # layers, keys and values, heads, width, bytes
    assert sum(mine["bytes"] for mine in found) == first["tokens"] * per_token  # nothing is held twice
    assert max(mine["bytes"] for mine in found) <= (first["tokens"] / len(found) + 2) * per_token


def test_one_prompt_at_a_time() -> None:
    shared = SequenceParallel(build("frame", 2, torch.float32), Mesh())
    with pytest.raises(ConfigError, match="one prompt is expected, got 2"):
        generate(shared, torch.zeros(2, 4, dtype=torch.int64))
