"""Vision towers of every back end give [F, h*w, D] in row-major order; unknown names are told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny import vision_config
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


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "mambaout_femto"])
def test_timm_maps_with_channels_last_are_turned(name: str) -> None:
    pytest.importorskip("timm")
    tower: Any = build_vision_tower(VisionConfig(backend="timm", name=name, image_size=224)).eval()
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected, tokens = tower.model.forward_features(x), tower(x)
    assert tower.grid == (7, 7) and tokens.shape == (1, 49, tower.out_dim)
    torch.testing.assert_close(tokens[0, 8], expected[0, 1, 1])


@pytest.mark.parametrize(
    ("name", "special"),
    [("dinov2_with_registers", 5), ("deit", 2), ("ijepa", 0), ("vit", 1), ("siglip_vision_model", 0)],
)
def test_transformers_towers_drop_every_special_token(name: str, special: int) -> None:
    tower: Any = build_vision_tower(vision_config(name)).eval()
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        tokens = tower(x)
        hidden = tower.model(pixel_values=x, output_hidden_states=True).hidden_states[-2]
    assert tower.grid == (4, 4) and hidden.shape[1] == 16 + special
    torch.testing.assert_close(tokens, hidden[:, special:])
    assert build_vision_tower(vision_config(name)).training


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "timm", "name": "vit_tiny_patch16_224", "tower": {"foo": 1}}, "'foo'"),
        ({"backend": "timm", "name": "vit_tiny_patch16_224", "image_size": 64}, "pictures of 64 px"),
        ({"backend": "timm", "name": "tf_efficientnet_lite0", "select_layer": -1}, "select_layer=-1"),
        ({"backend": "timm", "name": "tf_efficientnet_lite0", "select_feature": "cls_patch"}, "'cls_patch'"),
        ({"backend": "open_clip", "name": "ViT-S-32-alt", "select_layer": -1}, "select_layer=-1"),
        ({"name": "siglip2_vision_model", "image_size": 32, "tower": {"hidden_size": 24, "patch_size": 8}}, "siglip2"),
        ({"name": "convnext", "image_size": 64, "tower": {"depths": [1, 1, 1, 1]}}, "convnext"),
        ({"name": "swin", "image_size": 224, "tower": {"embed_dim": 24, "depths": [1, 1, 1, 1]}}, "swin"),
        ({"name": "vit", "image_size": 32, "tower": {"patch_size": 8}, "select_layer": 99}, "select_layer=99"),
    ],
)
def test_towers_that_cannot_be_used_are_told(options: dict[str, Any], words: str) -> None:
    pytest.importorskip(options.get("backend", "transformers"))
    with pytest.raises(ConfigError, match=words):
        build_vision_tower(VisionConfig(**options))


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
