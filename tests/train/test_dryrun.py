"""What a recipe would train and need, without training; and the command line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.harness import recipe
from train import main
from train.__main__ import cli
from train.dryrun import activation_values, describe
from train.tiny import model
from vlm.errors import ConfigError


def test_it_says_what_is_trained_and_what_it_needs(tmp_path: Path) -> None:
    text = describe(recipe(tmp_path / "never"))
    assert "weights not read" in text
    assert re.search(r"lm_head +trainable +384 of +384 parameters +lr 0.01", text)
    assert re.search(r"model +trainable +384 of", text)
    assert "up to 256 tokens per step" in text and "101 samples, 0.24 epochs" in text
    for row in ("weights", "gradients", "optimizer", "activations", "total"):
        assert re.search(rf"memory +{row} +[\d.]+ MiB", text)
    assert not (tmp_path / "never").exists()


def test_plugins_and_unknown_configs_are_covered(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    spec = recipe(tmp_path, stage={"plugins": ["lora"]})
    for stage in spec.stages:
        stage.trainable = {"*.lora_*": 1e-3}
    assert re.search(r"model +trainable +\d[\d,]* of", describe(spec))
    spec = recipe(tmp_path)
    spec.model.call, spec.model.args = "tests.train.test_loop:MeanLoss", {}
    spec.stages = spec.stages[:1]
    spec.stages[0].trainable = {"head": 1e-3}
    assert "without activations" in describe(spec)


def saved_bytes(network: torch.nn.Module, batch: int, length: int) -> int:
    """Bytes that autograd keeps for the backward pass, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(0, 12, (batch, length))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        output = network(input_ids=ids, labels=ids, use_cache=False)
    assert output.loss is not None
    return sum(t.untyped_storage().nbytes() for t in kept.values())


@pytest.mark.parametrize(("width", "layers"), [(64, 2), (128, 4), (256, 3)])
def test_the_formula_for_activations_agrees_with_what_autograd_keeps(width: int, layers: int) -> None:
    network = model(width=width, layers=layers)
    values = activation_values(network)
    assert values is not None
    assert 4 * 48 * 4 * sum(values) == pytest.approx(saved_bytes(network, 4, 48), rel=0.1)


def test_mistakes_are_found_without_training(tmp_path: Path) -> None:
    wrong = recipe(tmp_path)
    wrong.stages[1].trainable = {"modle": 1e-3}
    with pytest.raises(ConfigError, match=r"stages.learn.trainable.modle .*near names: .*model"):
        describe(wrong)
    for change, said in (
        ({"call": "train.tiny:backward"}, "near: backwards"),
        ({"call": "train.tinny:backwards"}, "no module 'train.tinny'"),
        ({"call": "train.tiny.backwards"}, "package.module:name"),
        ({"args": {"sise": 3}}, r"data.args.sise.*size, seed, longest"),
        ({"call": "tests.train.test_dryrun:nothing"}, "returned list"),
        ({"call": "tests.train.test_dryrun:needs"}, "data.args.needed"),
        ({"args": {"size": 0}}, "empty"),
    ):
        wrong = recipe(tmp_path)
        for key, value in change.items():
            setattr(wrong.stages[0].data, key, value)
        if "call" in change:
            wrong.stages[0].data.args = {}
        with pytest.raises(ConfigError, match=said if "returned" not in said else "returned NoneType"):
            describe(wrong)


def nothing() -> None:
    """No dataset."""


def needs(needed: int) -> list[Any]:
    """An argument without a default."""
    return [needed]


def test_python_m_train(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["tiny", "--dry-run", "stages.learn.batch_size=64"]) == 0
    assert "stage learn: 350 steps of 64 samples" in capsys.readouterr().out
    assert cli(["tiny", "stages.lern.steps=1"]) == 1
    assert "ConfigError: override 'stages.lern.steps=1'" in capsys.readouterr().err


def test_main_takes_a_path_overrides_and_trains(tmp_path: Path) -> None:
    options = ["stages.align.steps=2", "until=align", "report_to=[]", "progress=false", "model.args.width=32"]
    assert main("tiny", [f"out={tmp_path}", *options]) == 0
    assert (tmp_path / "final" / "trainable.safetensors").exists()


def test_importing_train_is_light(root: Path) -> None:
    code = "import sys, train; print([m for m in ('torch', 'transformers', 'accelerate', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
