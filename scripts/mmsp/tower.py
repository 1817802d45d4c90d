"""The model that all systems share: one Llama with the same weights, tokens and loss. Only its attention is exchanged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vlm.parallel.layout import Layout
from vlm.parallel.model import shifted


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and its sequence.

    Attributes:
        heads: Query heads H.
        kv: Key heads K.
        width: Of a head, d.
        length: Tokens S.
        layers: Decoder layers.
        inner: Width of the feed-forward part.
        vocabulary: Words V.
    """

    heads: int
    kv: int
    width: int
    length: int
    layers: int
    inner: int
    vocabulary: int

    @property
    def unit(self) -> int:
        """Bytes of the hidden tensor of the whole sequence in float32: U = S · H · d · 4."""
        return self.length * self.heads * self.width * 4


@dataclass
class System:
    """One way to share the sequence.

    Attributes:
        name: As in the table.
        layout: Who holds which tokens.
        attention: Its name in transformers.
        keywords: What the attention gets besides.
        formula: Bytes that a process sends in one layer, mean over the processes: (forward, forward and backward).
        about: Facts for the table.
    """

    name: str
    layout: Layout
    attention: str
    keywords: dict[str, Any]
    formula: tuple[float, float]
    about: dict[str, Any] = field(default_factory=dict)


class Tower:
    """A random Llama and one random sequence, the same in every process.

    Args:
        shape: Sizes.
        seed: Of weights and tokens.
    """

    def __init__(self, shape: Shape, seed: int) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.heads * shape.width,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv,
            max_position_embeddings=shape.length,
            attn_implementation="sdpa",
        )
        torch.manual_seed(seed)
        self.shape = shape
        self.model = LlamaForCausalLM(config).train()
        self.ids = torch.randint(0, shape.vocabulary, (shape.length,))

    def logits(self, system: System, rank: int) -> torch.Tensor:
        """``[N, V]`` of the tokens that a process holds."""
        rows = system.layout.rows(rank)
        positions = system.layout.positions(rank)
        hidden = self.model.model(
            input_ids=self.ids[rows][None], position_ids=positions[None], use_cache=False, **system.keywords
        ).last_hidden_state[0]
        return self.model.lm_head(hidden)

    def loss(self, logits_NV: torch.Tensor, system: System, rank: int) -> torch.Tensor:
        """The process's share of the mean cross entropy: torch's own, the same for every system."""
        targets = shifted(self.ids, system.layout)[system.layout.rows(rank)]
        total = nn.functional.cross_entropy(logits_NV, targets, ignore_index=-100, reduction="sum")
        return total / (self.shape.length - 1)

    def use(self, system: System) -> None:
        """Switch the attention."""
        self.model.set_attn_implementation(system.attention)
        for layer in self.model.model.layers:  # DeepSpeed changes it when it repeats keys
            layer.self_attn.num_key_value_groups = self.shape.heads // self.shape.kv
        self.model.zero_grad(set_to_none=True)

    def gradients(self) -> dict[str, torch.Tensor]:
        """Gradients by name, whatever was not touched as zeros."""
        return {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in self.model.named_parameters()
        }


def plain(shape: Shape) -> System:
    """One process with transformers' own attention. Made before a rival replaces that."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    AttentionInterface.register("mmsp_plain", ALL_ATTENTION_FUNCTIONS["sdpa"])
    AttentionMaskInterface.register("mmsp_plain", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    return System("one process", Layout((shape.length,)), "mmsp_plain", {}, (0.0, 0.0))
