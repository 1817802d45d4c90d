"""The curve on which time tokens start: neighbours are near, distance grows, no two are alike, and they look like words."""

from __future__ import annotations

import pytest
import torch

from vlm.errors import ConfigError
from vlm.time.rows import smooth_rows

WORDS = 0.3 + 0.05 * torch.randn(500, 256, generator=torch.Generator().manual_seed(1))


def test_the_cosine_falls_as_the_kernel_does() -> None:
    rows = smooth_rows(100, WORDS) - WORDS.mean(0)
    cosine = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1)
    for apart, wanted in ((1, 0.995), (5, 0.882), (10, 0.607), (20, 0.135), (60, 0.0)):
        assert float(cosine.diagonal(apart).mean()) == pytest.approx(wanted, abs=0.06)


def test_they_look_like_words() -> None:
    rows = smooth_rows(1000, WORDS)
    assert float(rows.mean()) == pytest.approx(float(WORDS.mean()), abs=0.02)
    assert float(rows.std(0).mean()) == pytest.approx(float(WORDS.std(0).mean()), rel=0.25)
    assert rows.dtype == WORDS.dtype


@pytest.mark.parametrize("count", [1, 2, 5, 300])
def test_no_two_are_alike_and_a_seed_says_which(count: int) -> None:
    rows = smooth_rows(count, WORDS, seed=3)
    assert rows.shape == (count, 256) and bool(rows.isfinite().all())
    if count > 1:
        assert float((rows[1:] - rows[:-1]).norm(dim=1).min()) > 1e-3
    assert torch.equal(rows, smooth_rows(count, WORDS, seed=3))
    assert not torch.equal(rows, smooth_rows(count, WORDS, seed=4))


def test_a_curve_that_never_turns_is_refused() -> None:
    with pytest.raises(ConfigError, match="width=0"):
        smooth_rows(10, WORDS, width=0)
