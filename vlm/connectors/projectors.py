"""Projectors from vision (or audio) features to the language model's width, with VILA's exact ``Sequential`` indices.

State-dict keys are ``layers.<index>.{weight,bias}`` as in VILA's ``mm_projector`` folder, so its weights load without renaming.
Shape legend: F frames, P positions of an h x w grid, D input width, H output width, k downsampling factor.
"""

from __future__ import annotations

import itertools
import re
from math import isqrt

import torch
from torch import nn

from vlm.errors import ConfigError

_DOWNSAMPLE = {
    "mlp_downsample": 2,
    "mlp_downsample_2x2_fix": 2,
    "mlp_downsample_3x3_fix": 3,
    "mlp_downsample_3x3_s2": 3,
    "mlp_downsample_3x3_s2_new": 3,
}
TOKEN_ORDERS = ("row", "column")


class SpaceToChannel(nn.Module):
    """Merge k x k neighbours into one token of k*k*D channels, order (r0c0, r0c1, r1c0, r1c1) for k=2.

    A side that k does not divide is padded with zeros at the bottom/right (feature space). ``order="column"`` lists the merged
    tokens column by column, as VILA-1.5 and Llama-3-LongVILA did under the same type name.
    """

    def __init__(self, factor: int, *, order: str = "row") -> None:
        super().__init__()
        if order not in TOKEN_ORDERS:
            raise ConfigError(f"connector token_order={order!r} is not one of {TOKEN_ORDERS}")
        self.factor, self.order = factor, order

    def forward(self, x_FPD: torch.Tensor) -> torch.Tensor:
        k = self.factor
        frames, positions, width = x_FPD.shape
        side = isqrt(positions)
        if side * side != positions:
            raise ConfigError(f"a downsampling projector needs a square grid of tokens, got {positions} positions")
        pad = -side % k
        x_FhwD = nn.functional.pad(x_FPD.view(frames, side, side, width), (0, 0, 0, pad, 0, pad))
        out = (side + pad) // k
        x_FhwkkD = x_FhwD.view(frames, out, k, out, k, width).permute(0, 1, 3, 2, 4, 5)
        if self.order == "column":
            x_FhwkkD = x_FhwkkD.transpose(1, 2)
        return x_FhwkkD.reshape(frames, out * out, k * k * width)


class Projector(nn.Module):
    """``features [F, P, D] -> tokens [F, P', H]``; ``out_grid`` tells how P' is laid out."""

    def __init__(self, kind: str, in_dim: int, out_dim: int, *, token_order: str = "row") -> None:
        super().__init__()
        self.kind, self.out_dim = kind, out_dim
        self.factor = _DOWNSAMPLE.get(kind, 1)
        self.layers = _layers(kind, in_dim, out_dim, token_order)

    def out_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Grid of the output tokens for an input grid (h, w)."""
        return -(-grid[0] // self.factor), -(-grid[1] // self.factor)

    def forward(self, x_FPD: torch.Tensor) -> torch.Tensor:
        return self.layers(x_FPD)


def _layers(kind: str, d: int, h: int, order: str) -> nn.Module:
    if kind == "identity":
        if d != h:
            raise ConfigError(f"an identity projector needs equal widths, got {d} and {h}")
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(d, h)
    if match := re.fullmatch(r"mlp(\d+)x_gelu", kind):
        rest = [m for _ in range(int(match[1]) - 1) for m in (nn.GELU(), nn.Linear(h, h))]
        return nn.Sequential(nn.Linear(d, h), *rest)
    if kind in ("mlp_downsample", "mlp_downsample_2x2_fix"):
        if kind.endswith("_fix") and order != "row":
            raise ConfigError(
                f"connector type {kind!r} is row-major by definition; use 'mlp_downsample' for column order"
            )
        return nn.Sequential(
            SpaceToChannel(2, order=order), nn.LayerNorm(4 * d), nn.Linear(4 * d, h), nn.GELU(), nn.Linear(h, h)
        )
    widths = {
        "mlp_downsample_3x3_fix": [9 * d, 3 * d, h],
        "mlp_downsample_3x3_s2": [9 * d, 3 * d, d, d // 3, h],
        "mlp_downsample_3x3_s2_new": [9 * d, 4 * d, 2 * d, d, d // 3, h],
    }.get(kind)
    if widths is None:
        known = ["identity", "linear", "mlp<N>x_gelu", *_DOWNSAMPLE]
        raise ConfigError(f"connector type {kind!r} is unknown; known: {known}")
    blocks: list[nn.Module] = [SpaceToChannel(3, order=order)]
    if kind == "mlp_downsample_3x3_fix":
        blocks += [nn.LayerNorm(9 * d), nn.Linear(9 * d, 3 * d), nn.GELU()]
        blocks += [nn.LayerNorm(3 * d), nn.Linear(3 * d, h), nn.GELU(), nn.Linear(h, h)]
        return nn.Sequential(*blocks)
    for i, o in itertools.pairwise(widths):
        blocks += [nn.LayerNorm(i), nn.Linear(i, o), nn.GELU()]
    return nn.Sequential(*blocks, nn.Linear(h, h))


def build_projector(kind: str, in_dim: int, out_dim: int, *, token_order: str = "row") -> Projector:
    """Projector of VILA's type ``kind`` (longvila spec, table A.4).

    Raises:
        ConfigError: Unknown type, or widths that do not fit it.
    """
    return Projector(kind, in_dim, out_dim, token_order=token_order)
