"""The paper's recipes are checked without weights and without data."""

from __future__ import annotations

import pytest
import torch

from train.dryrun import describe
from train.longvila import TEXTS, model
from train.stages import load_recipe
from vlm.errors import ConfigError
from vlm.parallel.shapes import shapes_of

STAGES = ("align", "pretrain", "sft", "extend", "extend_256k", "long")


@pytest.mark.parametrize(("name", "shapes"), [("longvila_1_5b", "qwen2-1.5b"), ("longvila_7b", "qwen2-7b")])
def test_a_recipe_is_valid_and_says_what_each_stage_trains(
    name: str, shapes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "32")
    recipe = load_recipe(name)
    assert tuple(stage.name for stage in recipe.stages) == STAGES
    thetas = [stage.rope_theta for stage in recipe.stages if stage.rope_theta]
    assert thetas == sorted(thetas) and thetas[0] == 15_300_000
    report = describe(recipe).split("\nstage ")
    assert "weights not read" in report[0]
    text = shapes_of(shapes).text.parameters
    whole = {stage.split(":")[0]: stage for stage in report[1:]}
    assert (
        f"trainable {text:>13,} of {text:>13,}" in whole["pretrain"]
        and "vision_tower         frozen" in whole["pretrain"]
    )
    assert "language_model       frozen" in whole["align"] and "mm_projector         trainable" in whole["align"]
    assert "vision_tower         trainable" in whole["sft"] and "vision_tower         trainable" in whole["long"]
    assert "mm_projector         frozen" in whole["extend"]
    for stage in whole.values():
        assert "not here (" in stage and "/ 32 processes" in stage
        total = float(stage.split("total")[1].split("MiB")[0].replace(",", "")) / 1024
        assert total < 200  # GiB; the batch of one GPU in stage 1 counts as if every caption were 4096 tokens long


def test_a_dry_run_knows_the_papers_shapes_only() -> None:
    with torch.device("meta"):
        small = model(llm="Qwen/Qwen2-1.5B-Instruct")
        assert all(p.device.type == "meta" for p in small.parameters())
        assert small.token_grid == (14, 14)
        with pytest.raises(ConfigError, match="a dry run knows the shapes of Qwen"):
            model(llm="somebody/else")
    assert set(TEXTS) == {"Qwen/Qwen2-1.5B-Instruct", "Qwen/Qwen2-7B-Instruct"}
