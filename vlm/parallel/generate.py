"""Generation over a shared sequence: the prompt is read by all processes together, then each computes the new token itself and looks at its
own share of the cache. All get the same bits, choose the same token and stop together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from vlm.errors import ConfigError
from vlm.parallel.cache import ShardedCache
from vlm.parallel.model import SequenceParallel


@torch.no_grad()
def generate(
    shared: SequenceParallel,
    input_ids: torch.Tensor,
    *,
    max_new_tokens: int = 256,
    stop_ids: Iterable[int] = (),
    temperature: float = 0.0,
    seed: int = 0,
    cache: ShardedCache | None = None,
    **media: Any,
) -> list[int]:
    """Continue one prompt; every process of the sequence calls it with the same ids and gets the same answer.

    Args:
        shared: The model.
        input_ids: ``[1, L]``.
        max_new_tokens: Most tokens to write.
        stop_ids: Tokens that end the answer; the one that ended it is not given back.
        temperature: 0 takes the likeliest token.
        seed: Of the choices, the same on all processes.
        cache: An empty cache to use, to look at it afterwards.
        media: As in `SequenceParallel.fuse`: frames of this process only.

    Returns:
        The tokens written.

    Raises:
        ConfigError: More than one prompt.
    """
    if input_ids.shape[0] != 1:
        raise ConfigError(f"one prompt is expected, got {input_ids.shape[0]}")
    cache = ShardedCache(shared.mesh) if cache is None else cache
    stops = set(stop_ids)
    answer: list[int] = []
    choose = torch.Generator().manual_seed(seed)
    logits_V = shared.read(input_ids, cache, **media)
    while len(answer) < max_new_tokens:
        token = _choose(logits_V, temperature, choose)
        if token in stops:
            break
        answer.append(token)
        if len(answer) < max_new_tokens:
            logits_V = shared.step(token, cache)
    return answer


def _choose(logits_V: torch.Tensor, temperature: float, choose: torch.Generator) -> int:
    if temperature <= 0:
        return int(logits_V.argmax())
    return int(torch.multinomial((logits_V.float() / temperature).softmax(-1).cpu(), 1, generator=choose))
