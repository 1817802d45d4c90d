"""Vision towers: transformers (SigLIP, CLIP, DINOv2, ...), timm and open_clip, all as ``pixels -> [F, P, D]``.

Shape legend: F frames, P positions (h*w, row-major, plus a class token if kept), D feature width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vlm.config import VisionConfig
from vlm.errors import ConfigError, MissingDependencyError


class VisionTower(nn.Module):
    """What the model needs to know about any tower.

    Attributes:
        out_dim: Feature width D.
        grid: (h, w) of the feature map for the configured image size; (1, P) when a class token is kept among the patches.
    """

    out_dim: int
    grid: tuple[int, int]

    def forward(self, pixels_F3HW: torch.Tensor) -> torch.Tensor:
        """Features ``[F, h*w, out_dim]`` of normalised pixels ``[F, 3, H, W]``."""
        raise NotImplementedError


class TransformersTower(VisionTower):
    """A ViT of transformers; returns the hidden state ``select_layer`` (VILA/LLaVA use -2, without the final norm)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        options = {"model_type": config.name, "image_size": config.image_size, **(config.tower or {})}
        try:
            tower_config = AutoConfig.for_model(**options)
        except ValueError as error:
            raise ConfigError(
                f"vision_config.name={config.name!r} is not a transformers vision model: {error}"
            ) from error
        if config._attn_implementation is not None:
            tower_config._attn_implementation = config._attn_implementation
        self.model = AutoModel.from_config(tower_config)
        self.select_layer = config.select_layer
        side = config.image_size // tower_config.patch_size
        self.out_dim = tower_config.hidden_size
        self._class_tokens = 0 if config.name.startswith("siglip") else 1
        self._skip = 0 if config.select_feature == "cls_patch" else self._class_tokens
        self.grid = (side, side) if self._skip == self._class_tokens else (1, side * side + self._class_tokens)

    def forward(self, pixels_F3HW: torch.Tensor) -> torch.Tensor:
        hidden = self.model(pixel_values=pixels_F3HW, output_hidden_states=True).hidden_states
        return hidden[self.select_layer][:, self._skip :]


class TimmTower(VisionTower):
    """Any timm model: convolutional maps ``[F, D, h, w]`` and ViT token lists both become ``[F, P, D]``."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise MissingDependencyError("timm", "smol", f"the vision tower {config.name!r}") from error
        if not timm.is_model(config.name):
            near = timm.list_models(f"*{config.name.split('_')[0]}*")[:5]
            raise ConfigError(f"vision_config.name={config.name!r} is not a timm model; similar: {near}")
        self.model = timm.create_model(config.name, pretrained=False, num_classes=0, **(config.tower or {}))
        self._prefix = int(getattr(self.model, "num_prefix_tokens", 0))
        with torch.no_grad():
            training = self.model.training
            probe = self.model.eval().forward_features(torch.zeros(1, 3, config.image_size, config.image_size))
            self.model.train(training)
        self.grid, self.out_dim = _grid_and_width(probe, self._prefix)

    def forward(self, pixels_F3HW: torch.Tensor) -> torch.Tensor:
        features = self.model.forward_features(pixels_F3HW)
        return _as_tokens(features, self._prefix)


class OpenClipTower(VisionTower):
    """The visual half of an open_clip model, patch tokens before pooling."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        try:
            import open_clip
        except ImportError as error:
            raise MissingDependencyError("open_clip_torch", "openclip", f"the vision tower {config.name!r}") from error
        if config.name not in open_clip.list_models():
            raise ConfigError(
                f"vision_config.name={config.name!r} is not an open_clip model; see open_clip.list_models()"
            )
        options = {"force_image_size": config.image_size, **(config.tower or {})}
        self.model = open_clip.create_model(config.name, pretrained=None, **options).visual
        if not hasattr(self.model, "transformer") or not hasattr(self.model, "conv1"):
            raise ConfigError(
                f"open_clip tower {config.name!r} is not a plain ViT; use vision_config.backend='timm' for it"
            )
        patch = self.model.conv1.kernel_size[0]
        side = config.image_size // patch
        self.grid = (side, side)
        self.out_dim = self.model.transformer.width

    def forward(self, pixels_F3HW: torch.Tensor) -> torch.Tensor:
        return self.model.forward_intermediates(pixels_F3HW, indices=1, intermediates_only=True, output_fmt="NLC")[
            "image_intermediates"
        ][-1]


def _as_tokens(features: torch.Tensor, prefix: int) -> torch.Tensor:
    """``[F, D, h, w]`` or ``[F, prefix + P, D]`` -> ``[F, P, D]``."""
    if features.ndim == 4:
        return features.flatten(2).transpose(1, 2)
    return features[:, prefix:]


def _grid_and_width(features: torch.Tensor, prefix: int) -> tuple[tuple[int, int], int]:
    if features.ndim == 4:
        return (features.shape[2], features.shape[3]), features.shape[1]
    side = int((features.shape[1] - prefix) ** 0.5)
    return (side, side), features.shape[2]


_TOWERS: dict[str, Any] = {"transformers": TransformersTower, "timm": TimmTower, "open_clip": OpenClipTower}


def build_vision_tower(config: VisionConfig) -> VisionTower:
    """The tower that ``config`` describes, randomly initialised.

    Raises:
        ConfigError: ``config.name`` is unknown to its backend.
        MissingDependencyError: The backend's package is not installed.
    """
    return _TOWERS[config.backend](config)
