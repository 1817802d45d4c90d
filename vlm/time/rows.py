"""Where embeddings of new time tokens start: on a smooth curve, so that neighbours in time are neighbours in space.

LITA leaves its new rows to the default of transformers, independent noise (2403.19046, released code), and each of a hundred tokens must
find its place alone. The curve is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm.errors import ConfigError


def smooth_rows(count: int, like_VD: Tensor, *, width: float | None = None, seed: int = 0) -> Tensor:
    """Rows ``[count, D]`` with mean and standard deviation of ``like_VD`` in every dimension, drawn from a Gaussian process over the index.

    The cosine of rows i and j, measured from the mean, is about ``exp(-(i - j)^2 / (2 width^2))``: an order that any direction in space
    can be asked for, and no two tokens are alike.

    Args:
        count: Number of time tokens.
        like_VD: Embeddings of words.
        width: Tokens over which the curve turns; default a tenth of ``count``.
        seed: Of the draw.

    Raises:
        ConfigError: ``width`` is not positive.
    """
    width = max(count / 10, 1.0) if width is None else width
    if not width > 0:
        raise ConfigError(f"width={width} of a curve of time tokens is not positive")
    index = torch.arange(count, dtype=torch.float64)
    alike = torch.exp(-((index[:, None] - index) ** 2) / (2 * width**2))
    values, vectors = torch.linalg.eigh(alike)
    noise = torch.randn(count, like_VD.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    curve = vectors * values.clamp_min(0).sqrt() @ noise
    like = like_VD.detach().double().cpu()
    return (like.mean(0) + like.std(0) * curve).to(like_VD)
