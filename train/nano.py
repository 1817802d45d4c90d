"""`nano`, from nothing: a 2-million-parameter video-language model for the shapes world, and its eyes alone for pretraining."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from data_recipes.synth.nano_tokenizer import build_nano_tokenizer
from data_recipes.synth.shapes_eyes import FORMS
from data_recipes.synth.shapes_render import COLOURS
from vlm.config import VisionConfig, VLMConfig
from vlm.encoders import build_vision_tower
from vlm.errors import CheckpointError
from vlm.model import VLMForConditionalGeneration
from vlm.processor import VLMProcessor

CONTEXT = 8192  # positions of the language model


def vision_config(width: int = 96, layers: int = 4, patch: int = 8, image_size: int = 64) -> VisionConfig:
    """A small SigLIP-shaped ViT."""
    tower = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 24,
        "patch_size": patch,
        "vision_use_head": False,
    }
    return VisionConfig(image_size=image_size, tower=tower, select_layer=-1)


def config(vocabulary: int, width: int = 160, layers: int = 5) -> VLMConfig:
    """Everything about nano; `vocabulary` counts the tokenizer's entries with media and time tokens."""
    return VLMConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": 8 * width // 3 // 32 * 32,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 32,
            "num_key_value_heads": width // 32,
            "max_position_embeddings": CONTEXT,
            "tie_word_embeddings": True,
        },
        vision_config=vision_config().to_dict(),
        connector={"type": "mlp_downsample"},
        pooling={"mode": "frame", "out_grid": [2, 2]},
        time={"codec": "relative", "interleave": True},
    )


def model(seed: int = 0, eyes: str | None = None) -> tuple[VLMForConditionalGeneration, VLMProcessor]:
    """A fresh nano with its processor.

    Args:
        seed: Of the weights.
        eyes: The folder ``final`` of a `nano_eyes` run, to start from its vision tower.

    Raises:
        CheckpointError: ``eyes`` holds no vision tower of this shape.
    """
    torch.manual_seed(seed)
    tokenizer = build_nano_tokenizer()
    probe = VLMProcessor.for_config(config(2048), tokenizer, (4, 4))
    nano_config = config(len(probe.tokenizer))
    nano_config.text_config.pad_token_id = tokenizer.pad_token_id
    nano_config.text_config.eos_token_id = tokenizer.eos_token_id
    nano_config.text_config.bos_token_id = None
    processor = VLMProcessor.for_config(nano_config, tokenizer, (4, 4))
    nano = VLMForConditionalGeneration(nano_config)
    if eyes is not None:
        _load_eyes(nano, Path(eyes))
    return nano, processor


class Eyes(nn.Module):
    """The vision tower with two linear heads that name form and colour under every patch."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_tower = build_vision_tower(vision_config())
        self.forms = nn.Linear(self.vision_tower.out_dim, len(FORMS))
        self.colours = nn.Linear(self.vision_tower.out_dim, len(COLOURS))

    def forward(
        self, *, pixel_values: torch.Tensor, labels: torch.Tensor, colours: torch.Tensor, **_: Any
    ) -> ModelOutput:
        """Mean cross entropy of both labels over the patches of ``pixel_values [B, 3, H, W]``; labels are ``[B, P]``."""
        features = self.vision_tower(pixel_values)
        forms = self.forms(features).flatten(0, 1)
        tints = self.colours(features).flatten(0, 1)
        loss = nn.functional.cross_entropy(forms, labels.flatten(), label_smoothing=0.02)
        loss = loss + nn.functional.cross_entropy(tints, colours.flatten(), ignore_index=-100)
        right = (forms.argmax(-1) == labels.flatten())[labels.flatten() > 0].float().mean()
        return ModelOutput(loss=loss, right=right)


def eyes_model(seed: int = 0) -> Eyes:
    """Fresh eyes, for recipes."""
    torch.manual_seed(seed)
    return Eyes()


def _load_eyes(nano: VLMForConditionalGeneration, folder: Path) -> None:
    """Copy the vision tower of a `nano_eyes` run.

    Raises:
        CheckpointError: The folder has no safetensors file with a fitting vision tower.
    """
    from safetensors.torch import load_file

    prefix = "vision_tower."
    tensors = {key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()}
    tower = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    missing, unexpected = nano.vision_tower.load_state_dict(tower, strict=False)
    if not tower or missing or unexpected:
        raise CheckpointError(
            f"{folder}: no vision tower that fits nano's; run the recipe nano_eyes (missing {missing[:3]})"
        )
