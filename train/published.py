"""The models of the papers, as their recipes start them: LongVILA (2408.10188) and LITA (2403.19046).

Training reads both halves from the hub (`vlm.compose`). For a dry run, which happens on the meta device, their shapes are written down
here, so that nothing is read at all.
"""

from __future__ import annotations

from typing import Any

import torch

from vlm.compose import compose, joined
from vlm.config import VisionConfig
from vlm.errors import ConfigError
from vlm.model import VLMForConditionalGeneration

_QWEN2 = {"model_type": "qwen2", "num_hidden_layers": 28, "max_position_embeddings": 32768, "rope_theta": 1000000.0}
_VICUNA = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 2048, "tie_word_embeddings": False}
TEXTS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2-1.5B-Instruct": {
        **_QWEN2, "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12,
        "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "Qwen/Qwen2-7B-Instruct": {
        **_QWEN2, "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
        "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
    "lmsys/vicuna-7b-v1.3": {
        **_VICUNA, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "lmsys/vicuna-13b-v1.3": {
        **_VICUNA, "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
}  # fmt: skip
TOWERS: dict[str, dict[str, Any]] = {
    "google/siglip-so400m-patch14-384": {
        "name": "siglip_vision_model", "hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16,
        "intermediate_size": 4304, "patch_size": 14, "image_size": 384,
    },
    "openai/clip-vit-large-patch14": {
        "name": "clip_vision_model", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 4096, "patch_size": 14, "image_size": 224,
    },
}  # fmt: skip


def longvila(
    llm: str = "Qwen/Qwen2-7B-Instruct",
    vision: str = "google/siglip-so400m-patch14-384",
    seed: int = 0,
    pooling: dict[str, Any] | None = None,
    time: dict[str, Any] | None = None,
) -> Any:
    """SigLIP and Qwen2 with a fresh downsampling connector: 196 tokens a frame.

    Args:
        llm: Hub id or folder of the language model.
        vision: Hub id or folder of the tower.
        seed: Of the connector's weights.
        pooling: See `VLMConfig`; default: all tokens of a frame, as LongVILA has it.
        time: See `VLMConfig`; default: 100 time tokens, not interleaved.

    Raises:
        ConfigError: On the meta device, for halves whose shapes are not written down here.
    """
    return _halves(llm, vision, seed, {"pooling": pooling, "time": time})


def lita(
    llm: str = "lmsys/vicuna-13b-v1.3",
    vision: str = "openai/clip-vit-large-patch14",
    seed: int = 0,
    num_time_tokens: int = 100,
    pool_size: int = 2,
) -> Any:
    """CLIP and Vicuna with one linear layer between, SlowFast tokens and time tokens: 356 tokens for 100 frames.

    Args:
        llm: Hub id or folder of the language model.
        vision: Hub id or folder of the tower.
        seed: Of the connector's weights.
        num_time_tokens: T.
        pool_size: s of `vlm.time.slowfast.SlowFastPooler`.

    Raises:
        ConfigError: On the meta device, for halves whose shapes are not written down here.
    """
    parts = {
        "connector": {"type": "linear"},
        "pooling": {"mode": "slowfast", "pool_size": pool_size},
        "time": {"codec": "relative", "num_tokens": num_time_tokens, "interleave": False},
    }
    return _halves(llm, vision, seed, parts)


def _halves(llm: str, vision: str, seed: int, parts: dict[str, Any]) -> Any:
    """Model and processor; on the meta device the model alone."""
    if torch.get_default_device().type == "meta":
        for what, name, known in (("llm", llm, TEXTS), ("vision", vision, TOWERS)):
            if name not in known:
                raise ConfigError(f"{what}={name!r}: a dry run knows the shapes of {', '.join(known)}")
        tower = dict(TOWERS[vision])
        eyes = VisionConfig(name=tower.pop("name"), image_size=tower.pop("image_size"), tower=tower, select_layer=-2)
        return VLMForConditionalGeneration(joined(dict(TEXTS[llm]), eyes, **parts))
    torch.manual_seed(seed)
    made = compose(llm, vision, **parts)
    return made.model.train(), made.processor
