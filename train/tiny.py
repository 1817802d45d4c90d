"""A one-minute training problem: a small Llama learns to spell numbers backwards. For tests, and as a template for a
recipe of your own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from data_recipes.sample import rng_for

DIGITS, ARROW, END = 10, 10, 11


def model(seed: int = 0, width: int = 64, layers: int = 2, dropout: float = 0.0) -> nn.Module:
    """A randomly initialised Llama-shaped model over 12 tokens: ten digits, an arrow and an end mark."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=12,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_dropout=dropout,
        bos_token_id=None,
        eos_token_id=END,
    )
    return LlamaForCausalLM(config)


@dataclass
class Backwards:
    """``3 1 4 -> 4 1 3 end``: item ``i`` is a pure function of ``seed`` and ``i``.

    Attributes:
        size: Number of samples.
        seed: Seed.
        longest: Most digits.
    """

    size: int = 1024
    seed: int = 0
    longest: int = 8

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = rng_for(self.seed, index)
        digits = torch.from_numpy(rng.integers(0, DIGITS, rng.integers(1, self.longest + 1)))
        answer = torch.cat([digits.flip(0), torch.tensor([END])])
        question = torch.cat([digits, torch.tensor([ARROW])])
        labels = torch.cat([torch.full_like(question, -100), answer])
        return {"id": f"backwards-{index}", "input_ids": torch.cat([question, answer]), "labels": labels}

    @property
    def lengths(self) -> Any:
        """Tokens of every sample."""
        import numpy as np

        return np.array([len(self[i]["input_ids"]) for i in range(self.size)])


def backwards(size: int = 1024, seed: int = 0, longest: int = 8) -> Backwards:
    """The dataset."""
    return Backwards(size, seed, longest)
