"""The models of LongVILA (2408.10188): a SigLIP tower and Qwen2, joined by VILA's downsampling projector.

Training reads both halves from the hub (`vlm.compose`). For a dry run, which happens on the meta device, their shapes are written down
here, so that nothing is read at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vlm.compose import compose, joined
from vlm.config import VisionConfig
from vlm.errors import ConfigError
from vlm.model import VLMForConditionalGeneration

_QWEN2 = {"model_type": "qwen2", "num_hidden_layers": 28, "max_position_embeddings": 32768, "rope_theta": 1000000.0}
TEXTS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2-1.5B-Instruct": {
        **_QWEN2, "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12,
        "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "Qwen/Qwen2-7B-Instruct": {
        **_QWEN2, "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
        "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
}  # fmt: skip
TOWERS: dict[str, dict[str, Any]] = {
    "google/siglip-so400m-patch14-384": {
        "hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304, "patch_size": 14,
        "image_size": 384,
    },
}  # fmt: skip


def model(
    llm: str = "Qwen/Qwen2-7B-Instruct",
    vision: str = "google/siglip-so400m-patch14-384",
    seed: int = 0,
    pooling: dict[str, Any] | None = None,
    time: dict[str, Any] | None = None,
) -> Any:
    """Both halves with a fresh connector: 196 tokens a frame.

    Args:
        llm: Hub id or folder of the language model.
        vision: Hub id or folder of the tower.
        seed: Of the connector's weights.
        pooling: See `VLMConfig`; default: all tokens of a frame, as LongVILA has it.
        time: See `VLMConfig`; default: 100 time tokens, not interleaved.

    Raises:
        ConfigError: On the meta device, for halves whose shapes are not written down here.
    """
    if torch.get_default_device().type == "meta":
        return _shapes_only(llm, vision, pooling, time)
    torch.manual_seed(seed)
    made = compose(llm, vision, pooling=pooling, time=time)
    return made.model.train(), made.processor


def _shapes_only(llm: str, vision: str, pooling: dict[str, Any] | None, time: dict[str, Any] | None) -> nn.Module:
    for what, name, known in (("llm", llm, TEXTS), ("vision", vision, TOWERS)):
        if name not in known:
            raise ConfigError(f"{what}={name!r}: a dry run knows the shapes of {', '.join(known)}")
    tower = dict(TOWERS[vision])
    eyes = VisionConfig(name="siglip_vision_model", image_size=tower.pop("image_size"), tower=tower)
    return VLMForConditionalGeneration(joined(dict(TEXTS[llm]), eyes, pooling=pooling, time=time))
