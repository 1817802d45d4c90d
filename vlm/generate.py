"""Token-by-token generation with a reusable cache: what `Chat` streams from.

`generate()` of transformers stays available on the model; this loop exists because a conversation needs to stop at any
token, keep its cache for the next question, and know when the first token came. Shape legend: L prompt tokens, D width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch

from vlm.decode import Embeds, decoder_for
from vlm.errors import ConfigError

_GREEDY = 1e-5  # logits divided by a smaller temperature overflow; the most likely token is then certain anyway


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 is greedy; so is anything below 1e-5.
        top_p: Nucleus mass, in (0, 1].
        repetition_penalty: Divides the logits of tokens already generated; 1 is off.
        seed: For temperature > 0.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature={self.temperature} is not a number from 0 up; use 0 for greedy decoding")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} is not in (0, 1]")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ConfigError(f"repetition_penalty={self.repetition_penalty} is not a number above 0; 1 is off")
        if not isinstance(self.seed, Integral) or not -(2**63) <= self.seed < 2**64:
            raise ConfigError(f"seed={self.seed!r} is not a whole number of at most 64 bits")


@dataclass
class DecodeState:
    """What one conversation has read.

    Attributes:
        cache: Keys and values (see `vlm.decode`).
        ids: The ids in it.
        pending: Ids that were said but are not in the cache; they are read before anything new.
        seconds: Timings of the last call.
    """

    cache: Any = None
    ids: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def rewind(self, length: int) -> None:
        """Forget what was read after the first ``length`` ids.

        A cache that cannot be cut there (a sliding window has moved on, a forward pass broke off half-way) is dropped with all ids:
        the conversation must then be read anew.
        """
        self.pending = []
        held = 0 if self.cache is None else self.cache.get_seq_length()
        if held == length == len(self.ids):
            return
        if length and held == len(self.ids):
            try:
                self.cache.crop(length - held)
                del self.ids[length:]
                return
            except (AttributeError, NotImplementedError, RuntimeError, ValueError):
                pass
        self.cache, self.ids = None, []


def check_length(max_new_tokens: int) -> None:
    """Refuse an answer without room.

    Raises:
        ConfigError: ``max_new_tokens`` is not a whole number from 1 up.
    """
    if not isinstance(max_new_tokens, Integral) or max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens={max_new_tokens!r} is not a whole number from 1 up")


def repeated_tail(ids: list[int], *, times: int = 4, longest: int = 12) -> int:
    """Length of the piece that the last ``times`` pieces of ``ids`` all equal; 0 when the end does not go round in circles."""
    for length in range(2, longest + 1):
        tail = ids[-times * length :]
        if len(tail) == times * length and all(tail[i] == tail[i % length] for i in range(len(tail))):
            return length
    return 0


def stop_token_ids(model: Any, tokenizer: Any) -> set[int]:
    """Ids that end an answer: the generation config's, the tokenizer's end of sequence, and ChatML's end of turn."""
    eos = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = set(eos if isinstance(eos, list) else [eos]) | {tokenizer.eos_token_id}
    for token in ("<|im_end|>", "<|eot_id|>", "<|endoftext|>"):
        found = tokenizer.convert_tokens_to_ids(token)  # the unknown token's id if there is none
        if found is not None and tokenizer.convert_ids_to_tokens(found) == token:
            ids.add(found)
    return {int(i) for i in ids if i is not None}


@torch.inference_mode()
def stream_ids(
    model: Any,
    state: DecodeState,
    embeds_1LD: Embeds,
    new_ids: list[int],
    *,
    stop_ids: set[int],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    escape: bool = False,
) -> Generator[int, None, None]:
    """Read ``new_ids`` (their embeddings are ``embeds_1LD``, whole or in pieces) after what ``state`` holds, then yield one id at a time.

    ``state`` stays consistent at every yield, so the caller may stop at any token and continue the conversation later. With ``escape``
    an answer that says the same for the third time must go on with another token, once: a list then comes to what follows.
    """
    check_length(max_new_tokens)
    sampling = sampling or Sampling()
    generator = torch.Generator().manual_seed(sampling.seed)
    began = time.perf_counter()
    length = len(state.ids) + len(new_ids) + max_new_tokens
    decoder, state.cache = decoder_for(model.language_model, state.cache, tokens=length)
    logits = decoder.read(state.cache, embeds_1LD)
    state.ids += new_ids
    state.seconds["prefill"] = time.perf_counter() - began
    began = time.perf_counter()
    produced: list[int] = []
    try:
        for _ in range(max_new_tokens):
            if escape and (circle := repeated_tail(produced, times=3)):
                logits[produced[-circle]], escape = -torch.inf, False
            token = _choose(logits, produced, sampling, generator)
            produced.append(token)
            if token in stop_ids:
                break
            yield token
            logits = decoder.step(state.cache, token)
            state.ids.append(token)
    finally:
        state.seconds["generate"] = time.perf_counter() - began


def _choose(logits: torch.Tensor, produced: list[int], sampling: Sampling, generator: torch.Generator) -> int:
    if sampling.repetition_penalty != 1.0 and produced:
        seen = torch.tensor(sorted(set(produced)), device=logits.device)
        values = logits[seen]
        logits[seen] = torch.where(
            values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty
        )
    if sampling.temperature < _GREEDY:
        return int(logits.argmax())
    probabilities = (logits / sampling.temperature).softmax(-1)
    ordered, order = probabilities.sort(descending=True)
    ordered[(ordered.cumsum(-1) - ordered) >= sampling.top_p] = 0.0
    return int(order[torch.multinomial(ordered.cpu(), 1, generator=generator)])
