"""The ONE seam where media features enter the text: locate the placeholders, scatter the features.

Shape legend: B batch, L sequence, N media tokens of the whole batch (row by row), D width.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from vlm.errors import AlignmentError


def locate(ids_BL: torch.Tensor, token_ids: Iterable[int | None]) -> torch.Tensor:
    """Boolean mask ``[B, L]`` of the positions that hold one of ``token_ids``."""
    wanted = torch.tensor([t for t in token_ids if t is not None], dtype=ids_BL.dtype, device=ids_BL.device)
    return torch.isin(ids_BL, wanted)


def scatter(
    embeds_BLD: torch.Tensor, mask_BL: torch.Tensor, features_ND: torch.Tensor, *, what: str = "media"
) -> torch.Tensor:
    """Embeddings with the masked positions replaced by ``features_ND``, in row-major order. Differentiable in both inputs.

    Raises:
        AlignmentError: The number of placeholders differs from N; the message gives both.
    """
    placeholders = int(mask_BL.sum())
    if placeholders != features_ND.shape[0]:
        raise AlignmentError(
            f"the text has {placeholders} {what} placeholder tokens but the {what} input gives {features_ND.shape[0]} features; "
            "build both with the same VLMProcessor"
        )
    source = features_ND.to(embeds_BLD.device, embeds_BLD.dtype)
    return embeds_BLD.masked_scatter(mask_BL.unsqueeze(-1), source)


def tag(embeds_BLD: torch.Tensor, media_BL: torch.Tensor, weight: float) -> torch.Tensor:
    """Media tokens plus the embedding of the last other token before them, ``weight`` times as long as the media token (ours).

    With interleaved times that token says when; tagged, every media token carries its own time, and finding when something is shown takes
    one step of attention instead of two. Positions before any other token stay as they are.
    """
    positions = torch.arange(media_BL.shape[1], device=media_BL.device).expand_as(media_BL)
    before_BL = positions.masked_fill(media_BL, -1).cummax(dim=1).values
    found = torch.gather(embeds_BLD, 1, before_BL.clamp_min(0)[..., None].expand_as(embeds_BLD))
    length = embeds_BLD.detach().norm(dim=-1, keepdim=True)  # media tokens may be far longer than those of text
    times = nn.functional.normalize(found, dim=-1) * length
    return embeds_BLD + weight * (media_BL & (before_BL >= 0))[..., None] * times
