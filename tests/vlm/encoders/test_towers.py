"""Vision towers of every back end give [F, h*w, D] in row-major order; unknown names are told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vlm.config import VisionConfig
from vlm.encoders import build_vision_tower
from vlm.errors import ConfigError


def test_timm_convolutional_map_is_row_major() -> None:
    pytest.importorskip("timm")
    tower: Any = build_vision_tower(VisionConfig(backend="timm", name="tf_efficientnet_lite0", image_size=64)).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = tower.model.forward_features(x)
        tokens = tower(x)
    assert tower.grid == (2, 2) and tower.out_dim == 1280
    torch.testing.assert_close(tokens[1, 3], expected[1, :, 1, 1])
    torch.testing.assert_close(tokens[0, 1], expected[0, :, 0, 1])


def test_timm_vit_drops_its_prefix_tokens() -> None:
    pytest.importorskip("timm")
    config = VisionConfig(
        backend="timm", name="vit_tiny_patch16_224", image_size=64, tower={"img_size": 64, "depth": 2}
    )
    tower: Any = build_vision_tower(config).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(tower(x), tower.model.forward_features(x)[:, 1:])
    assert tower.grid == (4, 4)


def test_open_clip_tower_gives_patch_tokens() -> None:
    pytest.importorskip("open_clip")
    tower = build_vision_tower(VisionConfig(backend="open_clip", name="ViT-S-32-alt", image_size=64)).eval()
    with torch.no_grad():
        tokens = tower(torch.rand(2, 3, 64, 64))
    assert tower.grid == (2, 2)
    assert tokens.shape == (2, 4, tower.out_dim)
    assert torch.isfinite(tokens).all() and tokens.std() > 0


@pytest.mark.parametrize(
    ("backend", "name"),
    [("timm", "tf_efficientnet_lite99"), ("open_clip", "ViT-Z-1"), ("transformers", "no_such_model")],
)
def test_unknown_names_are_told(backend: str, name: str) -> None:
    pytest.importorskip({"timm": "timm", "open_clip": "open_clip", "transformers": "transformers"}[backend])
    with pytest.raises(ConfigError, match=name):
        build_vision_tower(VisionConfig(backend=backend, name=name))


def test_unknown_backend_is_told() -> None:
    with pytest.raises(ConfigError, match="'jax'"):
        VisionConfig(backend="jax")
