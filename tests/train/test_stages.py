"""Recipes: data in, checked dataclasses out; errors name the key."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from train.grpo import load_grpo
from train.recipe_files import read_tree, shipped_recipes
from train.stages import Recipe, Stage, load_recipe, parse_recipe
from vlm.errors import ConfigError

MINIMAL = """
model: train.tiny:model
out: somewhere
stages:
  - {name: align, trainable: {lm_head: 1e-3}, data: "train.tiny:backwards", steps: 3}
  - {name: sft, trainable: {"*": 2.5E-4}, data: {call: "train.tiny:backwards"}, steps: 5, plugins: [lora]}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return path


def test_strings_become_calls_and_numbers_numbers(path: Path) -> None:
    recipe = load_recipe(path)
    align, sft = recipe.stages
    assert recipe.model.call == "train.tiny:model"
    assert align.trainable == {"lm_head": 1e-3} and sft.trainable == {"*": 2.5e-4}
    assert align.data.call == "train.tiny:backwards" and align.data.args == {}
    assert sft.plugins[0].call == "lora"


def test_a_recipe_survives_being_written_and_read(path: Path) -> None:
    recipe = load_recipe(path)
    assert parse_recipe(recipe.as_dict()) == recipe


def test_overrides_reach_everywhere(path: Path) -> None:
    recipe = load_recipe(
        path,
        [
            "seed=7",
            "out=runs/x=y",
            "stages.sft.steps=11",
            "stages.0.trainable.lm_head=2e-2",
            "stages.align.data.args.longest=3",
            "stages.sft.plugins.lora.args.r=4",
            "model.args.width=16",
            "report_to=[]",
        ],
    )
    align, sft = recipe.stages
    assert (recipe.seed, recipe.out, sft.steps, align.trainable["lm_head"]) == (7, "runs/x=y", 11, 0.02)
    assert align.data.args == {"longest": 3} and sft.plugins[0].args == {"r": 4} and recipe.model.args == {"width": 16}
    assert recipe.report_to == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.align.stpes=3", "stages.align.*stpes.*steps"),
        ("sede=3", "sede.*seed"),
        ("stages.align.steps=many", "stages.align.steps: .*int.*many"),
        ("stages.align.steps=0", "stages.align.steps=0"),
        ("stages.align.steps=null", "steps"),
        ("stages.align.schedule=sometimes", "stages.align.schedule.*cosine.*sometimes"),
        ("stages.align.trainable.lm_head=fast", "stages.align.trainable.*float.*fast"),
        ("stages.align.trainable.lm_head=-1", "stages.align.trainable.lm_head=-1"),
        ("stages.align.data.kwargs={}", "stages.align.*data.*kwargs"),
        ("stages.align.grad_accum=3", "batch_size=8.*grad_accum=3"),
        ("stages.align.max_bad=.nan", "max_bad"),
        ("stages.align.warmup=.inf", "warmup=inf"),
        ("stages.align.betas=[1.5,0.9]", "betas=\\[1.5, 0.9\\]"),
        ("stages.align.rope_theta=-1", "rope_theta=-1"),
        ("stages.align.frames=0", "frames=0"),
        ("seed=-1", "seed=-1"),
        ("timeout=-5", "timeout=-5"),
        ("stages.pretrain.steps=3", "pretrain.*align, sft"),
        ("stages.5.steps=3", "'5'.*align, sft"),
        ("seed.more=3", "seed"),
        ("seed", "key=value"),
        ("seed=[1", "seed=\\[1"),
        ("keep=1", "keep=1"),
        ("until=never", "until='never'.*align, sft"),
        ("nan=hope", "nan.*stop.*hope"),
        ("stages=[]", "stages"),
        ("model=null", "model"),
    ],
)
def test_errors_name_the_key(path: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        load_recipe(path, [override])


@pytest.mark.parametrize("text", ["", "- 1", "model: [", "model: x", "stages: {a: 1}", "stages: [1]", "\xff\x00"])
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError):
        load_recipe(path)


def test_yaml_that_would_run_code_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "bad.yaml"
    path.write_text(f"model: !!python/object/apply:os.mkdir ['{canary}']\n")
    with pytest.raises(ConfigError, match="YAML"):
        load_recipe(path)
    assert not canary.exists()


def test_a_missing_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match="tiny"):
        load_recipe("no_such_recipe")


def test_stage_names_differ(path: Path) -> None:
    with pytest.raises(ConfigError, match="names must differ"):
        load_recipe(path, ["stages.sft.name=align"])


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_sound(name: str) -> None:
    if read_tree(name).get("trainer") == "grpo":
        assert not Path(load_grpo(name).out).is_absolute()
        return
    recipe = load_recipe(name)
    assert recipe.stages and not Path(recipe.out).is_absolute()


@pytest.mark.parametrize("config", [Recipe, Stage])
def test_every_field_is_explained(config: type) -> None:
    assert config.__doc__ is not None
    for field in fields(config):
        assert f"\n        {field.name}: " in config.__doc__, field.name
