"""Tiny random models for tests: real classes and code paths, a few thousand parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

from vlm.chat import Assistant
from vlm.config import VisionConfig, VLMConfig
from vlm.model import VLMForConditionalGeneration
from vlm.processor import VLMProcessor

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, ChatML turns; any text can be written."""
    vocab = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, chat_template=CHATML, **special)
    return tokenizer


def text_config(kind: str = "llama", **changes: Any) -> Any:
    """A two-layer causal LM of 48 channels."""
    options: dict[str, Any] = {
        "vocab_size": 400,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **changes,
    }
    return AutoConfig.for_model(kind, **options)


def vision_config(name: str = "siglip_vision_model", **changes: Any) -> VisionConfig:
    """A three-layer ViT on 32 px pictures, patch 8: a 4 x 4 grid."""
    tower = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "patch_size": 8,
    }
    return VisionConfig(name=name, image_size=32, tower=tower, **changes)


def tiny_assistant(
    seed: int = 0, *, llm: str = "llama", text: dict[str, Any] | None = None, **options: Any
) -> Assistant:
    """A complete random model with its processor, in eval mode, float32."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer()
    config = VLMConfig(
        text_config=text_config(llm, **(text or {})),
        vision_config=options.pop("vision", None) or vision_config(),
        connector=options.pop("connector", {"type": "mlp_downsample"}),
        pooling=options.pop("pooling", {"mode": "frame"}),
        time=options.pop("time", {"codec": "relative", "num_tokens": 20, "interleave": True}),
        **options,
    )
    model = VLMForConditionalGeneration(config).eval()
    processor = VLMProcessor.for_config(config, tokenizer, model.token_grid)
    model.config.text_config.vocab_size = 400
    assert len(tokenizer) <= 400
    return Assistant(model, processor, name="tiny")


def random_frames(count: int, *, size: int = 40, seed: int = 0) -> np.ndarray:
    """Noise frames ``uint8 [count, size, size, 3]``."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
