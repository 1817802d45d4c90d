"""The paper's recipes are checked without weights and without data."""

from __future__ import annotations

import pytest
import torch

from train.dryrun import describe
from train.published import TEXTS, lita, longvila
from train.stages import load_recipe
from vlm.errors import ConfigError
from vlm.parallel.shapes import shapes_of
from vlm.time.slowfast import pooler_of

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
        small = longvila(llm="Qwen/Qwen2-1.5B-Instruct")
        assert all(p.device.type == "meta" for p in small.parameters())
        assert small.token_grid == (14, 14)
        with pytest.raises(ConfigError, match="a dry run knows the shapes of Qwen"):
            longvila(llm="somebody/else")
    assert {"Qwen/Qwen2-1.5B-Instruct", "Qwen/Qwen2-7B-Instruct"} <= set(TEXTS)


@pytest.mark.parametrize(("name", "billions"), [("lita_7b", 6.7), ("lita_13b", 13.0)])
def test_litas_recipes_are_the_papers(name: str, billions: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    recipe = load_recipe(name)
    align, sft = recipe.stages
    assert (sft.steps * sft.batch_size, sft.batch_size) == (3906 * 128, 128) and sft.seq_len == 2048
    assert set(sft.trainable) == {"mm_projector", "language_model"} and set(align.trainable) == {"mm_projector"}
    parts = sft.data.args["parts"]
    by_task: dict[str, int] = {}
    for part in parts.values():
        task = part["args"].get("task", "picture")
        by_task[task] = by_task.get(task, 0) + part["weight"]
    assert by_task == dict.fromkeys(("dense", "localise", "qa", "reasoning", "picture"), 6)
    assert parts["dense_activitynet"]["weight"] == 5 * parts["dense_youcook2"]["weight"]
    report = describe(recipe)
    assert "weights not read" in report and "vision_tower         frozen" in report
    assert float(report.split(" parameters")[0].rsplit(" ", 1)[1].replace(",", "")) / 1e9 == pytest.approx(
        billions + 0.3, abs=0.2
    )


def test_a_hundred_frames_are_356_tokens() -> None:
    with torch.device("meta"):
        made = lita(llm="lmsys/vicuna-7b-v1.3")
    assert made.config.vision_config.select_layer == -2 and made.token_grid == (16, 16)
    assert pooler_of(made.config.pooling).count(100, made.token_grid) == 356
