"""Connectors: features of a tower -> tokens of the language model; `fuse` is the one place where they enter the text."""

from __future__ import annotations

from typing import Any

from torch import nn

from vlm.connectors.projectors import Projector, SpaceToChannel, build_projector
from vlm.connectors.prototypes import PrototypeConnector
from vlm.errors import ConfigError

__all__ = ["Projector", "PrototypeConnector", "SpaceToChannel", "build_connector", "build_projector"]


def build_connector(options: dict[str, Any], in_dim: int, out_dim: int, grid: tuple[int, int]) -> nn.Module:
    """Connector described by ``options``: ``{"type": "prototypes", ...}`` or one of VILA's projector types.

    Raises:
        ConfigError: Unknown type or option.
    """
    options = dict(options)
    kind = options.pop("type", None)
    try:
        if kind == "prototypes":
            return PrototypeConnector(in_dim, out_dim, grid, **options)
        return build_projector(str(kind), in_dim, out_dim, **options)
    except TypeError as error:
        raise ConfigError(f"connector options {options} do not fit type {kind!r}: {error}") from error
