"""Vision towers: transformers (SigLIP, CLIP, DINOv2, ...), timm and open_clip, all as ``pixels -> [F, P, D]``.

Shape legend: F frames, P positions (h*w, row-major, plus a class token if kept), D feature width.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
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
        hidden = _probe(config, self.model, self._hidden)
        side = config.image_size // int(getattr(tower_config, "patch_size", 0) or config.image_size)
        special = hidden.shape[1] - side * side  # class token, distillation token, registers: they come first
        if hidden.ndim != 3 or special < 0 or side == 1:
            raise ConfigError(
                f"vision tower {config.name!r} gives features {list(hidden.shape)}, no list of patches in a square grid; "
                "use vision_config.backend='timm' for it"
            )
        self.out_dim, tokens = hidden.shape[2], hidden.shape[1]
        keeps_all = config.select_feature == "cls_patch" and special > 0
        self._skip = 0 if keeps_all else special
        self.grid = (1, tokens) if keeps_all else (side, side)

    def forward(self, pixels_F3HW: torch.Tensor) -> torch.Tensor:
        return self._hidden(pixels_F3HW)[:, self._skip :]

    def _hidden(self, pixels_F3HW: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixels_F3HW, output_hidden_states=True).hidden_states[self.select_layer]


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
        _check_selection(config)
        try:
            self.model = timm.create_model(config.name, pretrained=False, num_classes=0, **(config.tower or {}))
        except TypeError as error:
            raise ConfigError(f"timm model {config.name!r} does not take tower={config.tower}: {error}") from error
        self._prefix = int(getattr(self.model, "num_prefix_tokens", 0))
        features = _probe(config, self.model, self._features)
        tokens = _as_tokens(features, self._prefix)
        side = isqrt(tokens.shape[1])
        self.grid = (features.shape[2], features.shape[3]) if features.ndim == 4 else (side, side)
        self.out_dim = tokens.shape[2]
        if self.grid[0] * self.grid[1] != tokens.shape[1]:
            raise ConfigError(f"timm model {config.name!r} gives {tokens.shape[1]} tokens, which fill no square grid")

    def forward(self, pixels_F3HW: torch.Tensor) -> torch.Tensor:
        return _as_tokens(self._features(pixels_F3HW), self._prefix)

    def _features(self, pixels_F3HW: torch.Tensor) -> torch.Tensor:
        """What timm gives; maps with the channels last are turned to ``[F, D, h, w]``."""
        features = self.model.forward_features(pixels_F3HW)
        last = features.ndim == 4 and getattr(self.model, "output_fmt", None) == "NHWC"
        return features.permute(0, 3, 1, 2) if last else features


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
        _check_selection(config)
        options = {"force_image_size": config.image_size, **(config.tower or {})}
        try:
            self.model = open_clip.create_model(config.name, pretrained=None, **options).visual
        except TypeError as error:
            raise ConfigError(f"open_clip model {config.name!r} does not take tower={config.tower}: {error}") from error
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


def _probe(config: VisionConfig, model: nn.Module, run: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Features of one grey picture: their shape is known for certain only when they are there."""
    weight, training = next(model.parameters()), model.training
    picture = torch.zeros(1, 3, config.image_size, config.image_size, device=weight.device, dtype=weight.dtype)
    model.eval()
    try:
        with torch.no_grad():
            return run(picture)
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{config.backend} vision tower {config.name!r} cannot look at pictures of {config.image_size} px with "
            f"tower={config.tower}, select_layer={config.select_layer} ({type(error).__name__}: {error})"
        ) from error
    finally:
        model.train(training)


def _check_selection(config: VisionConfig) -> None:
    """Towers that offer their last features only cannot select others."""
    default = VisionConfig()
    for key in ("select_layer", "select_feature"):
        if (given := getattr(config, key)) != (usual := getattr(default, key)):
            raise ConfigError(
                f"vision_config.{key}={given!r} is for backend 'transformers'; {config.backend!r} takes {usual!r} only"
            )


_TOWERS: dict[str, Any] = {"transformers": TransformersTower, "timm": TimmTower, "open_clip": OpenClipTower}


def build_vision_tower(config: VisionConfig) -> VisionTower:
    """The tower that ``config`` describes, randomly initialised.

    Raises:
        ConfigError: ``config.name`` is unknown to its backend.
        MissingDependencyError: The backend's package is not installed.
    """
    return _TOWERS[config.backend](config)
