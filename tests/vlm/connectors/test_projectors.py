"""Projectors: VILA's state-dict indices, token order, padding, counts; fusing."""

from __future__ import annotations

import pytest
import torch

from vlm.connectors import PrototypeConnector, SpaceToChannel, build_connector, build_projector
from vlm.connectors.fuse import locate, scatter
from vlm.errors import AlignmentError, ConfigError

INDICES = {
    "linear": [],
    "mlp2x_gelu": [0, 2],
    "mlp3x_gelu": [0, 2, 4],
    "mlp_downsample": [1, 2, 4],
    "mlp_downsample_2x2_fix": [1, 2, 4],
    "mlp_downsample_3x3_fix": [1, 2, 4, 5, 7],
    "mlp_downsample_3x3_s2": [1, 2, 4, 5, 7, 8, 10, 11, 13],
    "mlp_downsample_3x3_s2_new": [1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16],
}


@pytest.mark.parametrize("kind", INDICES)
def test_state_dict_indices_are_those_of_the_checkpoints(kind: str) -> None:
    projector = build_projector(kind, 12, 20)
    keys = {k for k in projector.state_dict() if k.endswith("weight")}
    expected = {f"layers.{i}.weight" for i in INDICES[kind]} or {"layers.weight"}
    assert keys == expected
    assert projector(torch.randn(2, 36, 12)).shape == (2, projector.out_grid((6, 6))[0] ** 2, 20)


@pytest.mark.parametrize(
    ("d", "h", "kind", "millions"), [(1152, 1536, "mlp_downsample", 9.45), (1152, 4096, "mlp_downsample", 35.7)]
)
def test_parameter_counts_equal_the_published_sizes(d: int, h: int, kind: str, millions: float) -> None:
    with torch.device("meta"):
        projector = build_projector(kind, d, h)
    assert sum(p.numel() for p in projector.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def blocks(order: str, side: int = 4) -> list[list[int]]:
    grid = torch.arange(side * side, dtype=torch.float32).view(1, -1, 1)
    return SpaceToChannel(2, order=order)(grid)[0].long().tolist()


def test_token_orders() -> None:
    row = blocks("row")
    assert row == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert blocks("column") == [row[0], row[2], row[1], row[3]]


@pytest.mark.parametrize("factor", [2, 3])
def test_odd_grids_are_padded_with_zeros_at_the_bottom_and_right(factor: int) -> None:
    out = SpaceToChannel(factor)(torch.ones(1, 25, 1))
    side = -(-5 // factor)
    assert out.shape == (1, side * side, factor * factor)
    assert out.sum() == 25
    assert out[0, 0].sum() == factor * factor and out[0, -1].sum() < factor * factor


def test_identity_and_errors() -> None:
    x = torch.randn(1, 4, 8)
    assert torch.equal(build_projector("identity", 8, 8)(x), x)
    with pytest.raises(ConfigError, match="'mlp_down'"):
        build_projector("mlp_down", 8, 8)
    with pytest.raises(ConfigError, match="row-major by definition"):
        build_projector("mlp_downsample_2x2_fix", 8, 8, token_order="column")
    with pytest.raises(ConfigError, match="square grid"):
        build_projector("mlp_downsample", 8, 8)(torch.randn(1, 7, 8))
    with pytest.raises(ConfigError, match="do not fit"):
        build_connector({"type": "linear", "depth": 3}, 8, 8, (2, 2))


def test_prototypes_speak_the_value_of_the_matching_key() -> None:
    connector = PrototypeConnector(6, 5, (3, 3), num_prototypes=4, tokens_per_region=2)
    with torch.no_grad():
        connector.keys.weight.copy_(torch.eye(4, 6) * 50)
        connector.keys.bias.zero_()
        connector.values.copy_(torch.arange(40.0).view(4, 2, 5))
    x = torch.zeros(1, 9, 6)
    x[0, [0, 3, 6], 1] = 1.0
    x[0, [2, 5, 8], 2] = 1.0
    tokens = connector(x).view(4, 2, 5)
    names = dict(zip(connector.regions, tokens, strict=True))
    torch.testing.assert_close(names["left"], connector.values[1])
    torch.testing.assert_close(names["right"], connector.values[2])
    assert connector.out_grid((3, 3)) == (4, 2)


def test_fuse_is_differentiable_and_counts() -> None:
    ids = torch.tensor([[1, 9, 9, 2], [9, 1, 1, 1]])
    embeds = torch.zeros(2, 4, 3, requires_grad=True)
    features = torch.randn(3, 3, requires_grad=True)
    out = scatter(embeds, locate(ids, (9, None)), features)
    assert (
        torch.equal(out[0, 1], features[0])
        and torch.equal(out[0, 2], features[1])
        and torch.equal(out[1, 0], features[2])
    )
    out.sum().backward()
    assert features.grad is not None and embeds.grad is not None
    assert torch.equal(features.grad, torch.ones(3, 3))
    assert embeds.grad.sum() == 5 * 3
    with pytest.raises(AlignmentError, match=r"3 media placeholder tokens .* gives 2"):
        scatter(embeds, locate(ids, (9,)), features[:2])
