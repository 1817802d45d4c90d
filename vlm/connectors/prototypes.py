"""Connector by attention over named prototypes (ours).

A frozen classifier knows which of C classes a picture shows; the language model knows what their names mean. This connector joins
the two: keys start as classifier rows, values as the embeddings of the first tokens of each class name, and a region of the feature
map becomes ``softmax(scale * (keys @ feature + bias)) @ values``. It names things before any training; training refines keys and values,
adds rows for classes the classifier lacks, and a small residual MLP for what names do not say (colour, count, background).

Shape legend: F frames or shots, P positions of the grid, R regions, C prototypes, K tokens per region, E feature width, D output width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vlm.errors import ConfigError

REGIONS = ("all", "left", "middle", "right")


def region_masks(grid: tuple[int, int], names: tuple[str, ...] | list[str] = REGIONS) -> torch.Tensor:
    """Averaging weights ``[R, h*w]`` (rows sum to 1) of the named regions of an h x w grid."""
    h, w = grid
    third = -(-w // 3)
    columns = {
        "all": (0, w),
        "left": (0, third),
        "middle": ((w - third) // 2, (w - third) // 2 + third),
        "right": (w - third, w),
    }
    rows = []
    for name in names:
        if name not in columns:
            raise ConfigError(f"connector region {name!r} is not one of {tuple(columns)}")
        mask = torch.zeros(h, w)
        mask[:, slice(*columns[name])] = 1.0
        rows.append((mask / mask.sum()).flatten())
    return torch.stack(rows)


class PrototypeConnector(nn.Module):
    """``features [F, P, E] -> tokens [F, R*K, D]``, region by region.

    Args:
        in_dim: E.
        out_dim: D.
        grid: (h, w) of the feature map.
        num_prototypes: C.
        tokens_per_region: K.
        regions: Names of `region_masks`.
        hidden: Width of the residual MLP; its last layer starts at zero, so an untrained connector is pure prototypes.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        grid: tuple[int, int],
        *,
        num_prototypes: int = 1000,
        tokens_per_region: int = 3,
        regions: tuple[str, ...] | list[str] = REGIONS,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        self.tokens_per_region, self.regions, self.out_dim = tokens_per_region, tuple(regions), out_dim
        self.keys = nn.Linear(in_dim, num_prototypes)
        self.values = nn.Parameter(torch.zeros(num_prototypes, tokens_per_region, out_dim))
        self.log_scale = nn.Parameter(torch.zeros(len(regions)))
        self.residual = nn.Sequential(
            nn.Linear(in_dim, hidden), nn.GELU(), nn.Linear(hidden, tokens_per_region * out_dim)
        )
        self._grid = grid
        self.zero_residual()

    def zero_residual(self) -> None:
        """Start (again) from pure prototypes."""
        last: Any = self.residual[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def regions_of(self, x_FPE: torch.Tensor) -> torch.Tensor:
        """Mean feature ``[F, R, E]`` of every region. The masks are made here: a buffer that is not saved would come back empty."""
        return region_masks(self._grid, self.regions).to(x_FPE) @ x_FPE

    def out_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Output tokens are laid out as R rows of K."""
        if tuple(grid) != tuple(self._grid):
            raise ConfigError(f"this connector was built for a {self._grid} grid, got {grid}")
        return len(self.regions), self.tokens_per_region

    def similarities(self, x_FPE: torch.Tensor) -> torch.Tensor:
        """Prototype logits ``[F, R, C]`` before the softmax; the row "all" is the classifier's own answer."""
        return self._similarities(self.regions_of(x_FPE))

    def _similarities(self, region_FRE: torch.Tensor) -> torch.Tensor:
        return self.keys(region_FRE) * self.log_scale.exp().unsqueeze(-1)

    def forward(self, x_FPE: torch.Tensor) -> torch.Tensor:
        region_FRE = self.regions_of(x_FPE)
        weights_FRC = self._similarities(region_FRE).softmax(-1)
        named_FRKD = torch.einsum("frc,ckd->frkd", weights_FRC, self.values)
        extra_FRKD = self.residual(region_FRE).view_as(named_FRKD)
        return (named_FRKD + extra_FRKD).flatten(1, 2)
