"""Which layers the adapters go to."""

from __future__ import annotations

import re

import pytest

from vlm.plugins.lora import Lora


@pytest.mark.parametrize("targets", [r".*q_proj|.*v_proj", ["q_proj", "v_proj"]])
def test_within_holds_for_every_alternative(targets: str | list[str]) -> None:
    pattern = Lora(targets=targets, within="language_model").pattern()
    inside = ["language_model.layers.0.q_proj", "language_model.layers.0.v_proj"]
    assert all(re.fullmatch(pattern, path) for path in inside)
    assert not any(re.fullmatch(pattern, path) for path in ("vision_tower.q_proj", "vision_tower.v_proj"))
