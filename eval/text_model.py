"""A random model of which only the language model matters, for measuring speed and bytes."""

from __future__ import annotations

from typing import Any

import torch

from vlm.config import VisionConfig, VLMConfig
from vlm.model import VLMForConditionalGeneration

_EYES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8}


def text_model(text: dict[str, Any], seed: int = 0) -> Any:
    """A Llama with the smallest eyes there are, ready to train.

    Args:
        text: Sizes, as `transformers.LlamaConfig` takes them.
        seed: Of the weights.
    """
    torch.manual_seed(seed)
    return VLMForConditionalGeneration(
        VLMConfig(
            text_config={"model_type": "llama", "tie_word_embeddings": True, **text},
            vision_config=VisionConfig(name="siglip_vision_model", image_size=32, tower=dict(_EYES)),
            connector={"type": "linear"},
            pooling={"mode": "frame"},
            time={"codec": "seconds"},
        )
    ).train()
