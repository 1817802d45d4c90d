"""The loop: what is learnt, what stays frozen, how the loss is weighted, what happens when it is not finite."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers.utils import ModelOutput

from tests.train.harness import final_digest, history, recipe
from train.run import run
from train.stages import Recipe
from train.tiny import Backwards, model
from vlm.errors import CheckpointError, ConfigError, TrainingError
from vlm.plugins import Plugin
from vlm.plugins.parts import load_parts, tensors_by_name

HERE = "tests.train.test_loop"


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    """One thread; and what has been imported is not looked at again by every garbage collection."""
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def trained(out: Path, fresh: nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor of a fresh model with the result of the run put in."""
    return {k: v.detach().clone() for k, v in tensors_by_name(load_parts(fresh, out / "final")[0]).items()}


def small() -> nn.Module:
    return model(width=32, layers=1, dropout=0.1)


def test_it_learns_and_leaves_everything_a_run_should_leave(tmp_path: Path) -> None:
    spec = recipe(tmp_path / "run", steps=(10, 110), report_to=["tensorboard"], save_every=1000)
    spec.model.args["dropout"] = 0.0
    assert run(spec) == 0
    losses = history(tmp_path / "run")
    assert sorted(losses) == list(range(1, 121))
    assert losses[1] > 2.2 and np.mean([losses[i] for i in range(111, 121)]) < 1.7
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"checkpoints", "final", "history.jsonl", "train"} <= names
    assert list((tmp_path / "run" / "train").glob("events.out.tfevents.*"))
    record = json.loads((tmp_path / "run" / "history.jsonl").read_text().splitlines()[-1])
    assert {"stage", "step", "loss", "lr", "grad_norm", "tokens", "tokens_per_s"} <= record.keys()


def test_frozen_parts_stay_and_are_not_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "train"):
        run(recipe(tmp_path, steps=(4,)))
    before, after = tensors_by_name(small()), trained(tmp_path, small())
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"lm_head.weight", "model.embed_tokens.weight"}
    assert load_parts(small(), tmp_path / "final")[1] == moved
    assert "lm_head              trainable" in caplog.text and "384 of" in caplog.text


def test_a_later_stage_keeps_what_an_earlier_one_trained(tmp_path: Path) -> None:
    spec = recipe(tmp_path, steps=(3, 3))
    spec.stages[1].trainable = {"model.layers": 1e-2, "model.layers.0.mlp": 0}
    run(spec)
    moved = {n for n, t in trained(tmp_path, small()).items() if not torch.equal(t, tensors_by_name(small())[n])}
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"} <= moved
    assert not any("mlp" in name for name in moved)


@pytest.mark.parametrize("wrong", ["model.layer", "lm_haed", "*.lora_*"])
def test_a_pattern_without_a_match_is_an_error_with_near_names(tmp_path: Path, wrong: str) -> None:
    spec = recipe(tmp_path, steps=(1,))
    spec.stages[0].trainable = {wrong: 1e-3}
    with pytest.raises(ConfigError, match=r"stages.align.trainable\..*(model.layers|lm_head)"):
        run(spec)


class MeanLoss(nn.Module):
    """A model that does not know ``num_items_in_batch``: its loss is the mean over its own batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(12, 16)
        self.head = nn.Linear(16, 12)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> ModelOutput:
        logits = self.head(self.embed(input_ids))[:, :-1]
        return ModelOutput(loss=nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()))


@pytest.mark.parametrize("builder", ["train.tiny:model", f"{HERE}:MeanLoss"])
def test_micro_batches_are_weighted_by_their_tokens(tmp_path: Path, builder: str) -> None:
    results = []
    for accum in (1, 2, 8):
        out = tmp_path / str(accum)
        spec = recipe(out, steps=(4,), stage={"grad_accum": accum})
        spec.model.call, spec.model.args = builder, {}
        spec.stages[0].trainable = {"*": 1e-2}
        run(spec)
        fresh = MeanLoss() if "MeanLoss" in builder else model()
        results.append((list(history(out).values()), trained(out, fresh)))
    for losses, weights in results[1:]:
        assert losses == pytest.approx(results[0][0], abs=1e-6)
        for name, tensor in weights.items():
            # Adam turns a gradient of about 0 into a whole step, so single entries may differ; together they must not.
            assert float((tensor - results[0][1][name]).abs().mean()) < 1e-4, name


def test_the_loss_is_the_mean_over_all_targets_of_the_step(tmp_path: Path) -> None:
    spec = recipe(tmp_path, steps=(1,), stage={"grad_accum": 4})
    spec.model.args["dropout"] = 0.0
    run(spec)
    from train.data import MicroBatches, Order, pad_and_stack

    dataset = Backwards(101)
    batch = MicroBatches(dataset, Order(101, (0, 0)), pad_and_stack, 8)[0]
    with torch.no_grad():
        expected = float(model(width=32, layers=1)(**batch.inputs).loss)
    assert history(tmp_path)[1] == pytest.approx(expected, abs=1e-6)


class Poisoned(Backwards):
    """Sample 5 has an extra input that turns the loss into NaN."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        poison = torch.full((1, 1), float("nan") if index == 5 else 0.0)
        return {**super().__getitem__(index), "poison": poison}


class Poisonable(MeanLoss):
    """Adds its input ``poison`` to the loss; with ``gradient_only`` the loss stays finite and the gradient does not."""

    def __init__(self, gradient_only: bool = False) -> None:
        super().__init__()
        self.gradient_only = gradient_only

    def forward(self, poison: torch.Tensor, **inputs: Any) -> ModelOutput:  # type: ignore[override]
        loss = super().forward(**inputs).loss
        if self.gradient_only:
            zero = (self.head.bias * 0).sum()
            # The root of 0 is finite, its slope is not.
            return ModelOutput(loss=loss + torch.sqrt(zero) if bool(poison.isnan().any()) else loss)
        return ModelOutput(loss=loss + (poison * self.head.bias.sum()).sum())


def poisoned(out: Path, **changes: Any) -> Recipe:
    spec = recipe(out, steps=(8,), stage={"data": f"{HERE}:Poisoned", "grad_accum": 2}, **changes)
    spec.model.call, spec.model.args = f"{HERE}:Poisonable", {}
    spec.stages[0].trainable = {"*": 1e-2}
    spec.stages[0].data.args = {"size": 32}
    return spec


@pytest.mark.parametrize("gradient_only", [False, True])
def test_a_loss_that_is_not_finite_stops_with_the_samples_and_the_weights_before(
    tmp_path: Path, gradient_only: bool
) -> None:
    spec = poisoned(tmp_path / "a", save_every=100)
    spec.model.args = {"gradient_only": gradient_only}
    with pytest.raises(TrainingError, match=r"stage align, step \d: .*backwards-5") as caught:
        run(spec)
    step = int(str(caught.value).split("step ")[1].split(":")[0])
    short = poisoned(tmp_path / "b")
    short.model.args = {"gradient_only": gradient_only}
    short.stages[0].schedule = spec.stages[0].schedule = "constant"
    from train.checkpoint import CheckpointStore

    found = CheckpointStore(tmp_path / "a" / "checkpoints").load()
    assert found is not None and found.step == step and step >= 1
    assert all(bool(t.isfinite().all()) for group in found.tensors.values() for t in group.values())
    with pytest.raises(TrainingError, match="backwards-5"):  # the same batch again
        run(spec)
    with pytest.raises(TrainingError, match="backwards-5"):
        run(short)
    again = CheckpointStore(tmp_path / "a" / "checkpoints").load()
    assert again is not None and torch.equal(
        again.tensors["weights"]["head.weight"], found.tensors["weights"]["head.weight"]
    )


def test_a_loss_that_is_not_finite_can_be_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run(poisoned(tmp_path, nan="skip")) == 0
    assert "backwards-5" in caplog.text and "Update skipped" in caplog.text
    records = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert len(records) == 8 and records[-1]["skipped"] == 2  # once in each of the two epochs
    assert [r["loss"] for r in records].count("nan") == 2
    assert all(bool(t.isfinite().all()) for t in trained(tmp_path, Poisonable()).values())


class Unreadable(Backwards):
    """Samples 3 and 4 have no targets."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = super().__getitem__(index)
        if index in (3, 4):
            example["labels"] = torch.full_like(example["labels"], -100)
        return example


def test_unusable_samples_stop_or_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stage = {"data": {"call": f"{HERE}:Unreadable", "args": {"size": 32}}}
    with pytest.raises(
        TrainingError, match=r"unusable samples, 0 allowed by max_bad=0.0; sample [34]: backwards-[34]: no target"
    ):
        run(recipe(tmp_path / "a", steps=(4,), stage=stage))
    assert run(recipe(tmp_path / "b", steps=(4,), stage={**stage, "max_bad": 0.1})) == 0
    assert "sample 3" in caplog.text and "sample 4" in caplog.text


class WithNorm(MeanLoss):
    """Has a batch norm and a dropout in a part that is frozen, and a batch norm in one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Sequential(nn.BatchNorm1d(16), nn.Dropout(0.5))
        self.live = nn.BatchNorm1d(16)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> ModelOutput:
        x = self.live(self.frozen(self.embed(input_ids).transpose(1, 2))).transpose(1, 2)
        logits = self.head(x)[:, :-1]
        return ModelOutput(loss=nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()))


def test_statistics_of_frozen_parts_stay_and_those_of_trained_parts_are_saved(tmp_path: Path) -> None:
    spec = recipe(tmp_path, steps=(3,))
    spec.model.call, spec.model.args = f"{HERE}:WithNorm", {}
    spec.stages[0].trainable = {"live": 1e-3, "head": 1e-3}
    run(spec)
    before, after = tensors_by_name(WithNorm()), trained(tmp_path, WithNorm())
    assert torch.equal(after["frozen.0.running_mean"], before["frozen.0.running_mean"])
    assert not torch.equal(after["live.running_mean"], before["live.running_mean"])
    assert int(after["live.num_batches_tracked"]) == 6


@dataclass
class Pull(Plugin):
    """Pulls the output layer towards zero; counts its hooks in the model."""

    weight: float = 1.0

    def prepare(self, model: Any) -> Any:
        self.model = model
        return model

    def losses(self, batch: dict[str, Any], outputs: Any) -> dict[str, torch.Tensor]:
        return {"pull": self.weight * self.model.get_parameter("lm_head.weight").square().sum()}

    def finish(self, model: Any) -> Any:
        with torch.no_grad():
            for name in ("model.norm.weight", "model.layers.0.input_layernorm.weight"):
                model.get_parameter(name).fill_(0.5)
        return model


def test_a_plugin_adds_its_loss_and_what_it_changes_is_saved(tmp_path: Path) -> None:
    for weight in (0.0, 100.0):
        run(
            recipe(
                tmp_path / str(weight),
                steps=(6,),
                stage={"plugins": [{"call": f"{HERE}:Pull", "args": {"weight": weight}}]},
            )
        )
    off, on = (trained(tmp_path / str(w), small()) for w in (0.0, 100.0))
    assert on["lm_head.weight"].norm() < 0.9 * off["lm_head.weight"].norm()
    assert bool((on["model.norm.weight"] == 0.5).all() and (on["model.layers.0.input_layernorm.weight"] == 0.5).all())
    record = json.loads((tmp_path / "100.0" / "history.jsonl").read_text().splitlines()[0])
    assert record["loss_pull"] > 1 and record["loss"] == pytest.approx(record["loss_pull"], abs=4)


@pytest.mark.parametrize("merge", [False, True])
def test_lora_trains_little_and_its_result_loads(tmp_path: Path, merge: bool) -> None:
    pytest.importorskip("peft")
    plugins = [{"call": "lora", "args": {"r": 2, "within": "model", "merge": merge}}]
    spec = recipe(tmp_path, steps=(4, 4))
    for stage in spec.stages:
        stage.plugins = recipe(tmp_path, stage={"plugins": plugins}).stages[0].plugins
        stage.trainable = {"*.lora_*": 1e-2}
    run(spec)
    loaded, names = load_parts(small(), tmp_path / "final")
    assert all(("lora_" in n) != merge for n in names)
    changed = sorted({n.replace(".base_layer", "").rsplit(".lora_")[0].removesuffix(".weight") for n in names})
    assert changed == [f"model.layers.0.self_attn.{p}_proj" for p in "koqv"]
    x = torch.arange(8)[None]
    with torch.no_grad():
        assert not torch.allclose(loaded.eval()(input_ids=x).logits, small().eval()(input_ids=x).logits, atol=1e-4)


def test_lora_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    with pytest.raises(ConfigError, match="w_pack"):
        run(recipe(tmp_path, stage={"plugins": [{"call": "lora", "args": {"targets": ["w_pack"]}}]}))
    with pytest.raises(ConfigError, match="rank"):
        run(recipe(tmp_path, stage={"plugins": [{"call": "lora", "args": {"rank": 3}}]}))


def test_recomputing_activations_and_accumulating_change_nothing(tmp_path: Path) -> None:
    for name, stage in {"a": {}, "b": {"gradient_checkpointing": True}}.items():
        run(recipe(tmp_path / name, steps=(2, 3), stage=stage))
    assert list(history(tmp_path / "a").values()) == pytest.approx(list(history(tmp_path / "b").values()), abs=1e-6)


def test_bf16_trains(tmp_path: Path) -> None:
    run(recipe(tmp_path, steps=(3, 3), stage={"dtype": "bf16"}))
    assert all(np.isfinite(loss) for loss in history(tmp_path).values())
    assert trained(tmp_path, small())["lm_head.weight"].dtype == torch.float32


def test_a_new_rotary_base_is_used_and_survives_in_the_result(tmp_path: Path) -> None:
    same, other = recipe(tmp_path / "a", steps=(1, 1)), recipe(tmp_path / "b", steps=(1, 1))
    other.stages[0].rope_theta = 50.0
    other.stages[0].seq_len = 128
    run(same)
    run(other)
    assert history(tmp_path / "a")[1] != history(tmp_path / "b")[1]


def test_stopping_after_a_stage_and_going_on_is_the_same_run(tmp_path: Path) -> None:
    whole, parts = recipe(tmp_path / "whole"), recipe(tmp_path / "parts", until="align")
    run(whole)
    run(parts)
    assert len(history(tmp_path / "parts")) == 3
    parts.until = None
    run(parts)
    assert history(tmp_path / "parts") == history(tmp_path / "whole")
    assert final_digest(tmp_path / "parts") == final_digest(tmp_path / "whole")
    parts.until = "align"
    with pytest.raises(ConfigError, match=r"until='align'.*past that stage already, in 'learn'"):
        run(parts)
    assert final_digest(tmp_path / "parts") == final_digest(tmp_path / "whole")


def test_the_whole_model_can_be_saved_and_another_run_can_start_from_it(tmp_path: Path) -> None:
    run(recipe(tmp_path / "a", steps=(3,), save="all"))
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "final")
    assert torch.equal(loaded.lm_head.weight, trained(tmp_path / "a", small())["lm_head.weight"])
    run(recipe(tmp_path / "b", steps=(3,), init=str(tmp_path / "a" / "final"), seed=1))
    assert history(tmp_path / "b")[1] < history(tmp_path / "a")[1]


def test_a_folder_with_checkpoints_is_gone_on_with_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(recipe(tmp_path, steps=(3,)))
    with pytest.raises(ConfigError, match="resume=false"):
        run(recipe(tmp_path, steps=(3,), resume=False))
    with caplog.at_level(logging.WARNING, "train"):
        run(recipe(tmp_path, steps=(5,)))
    assert "stages.0.steps was 3" in caplog.text and len(history(tmp_path)) == 5
    changed = recipe(tmp_path, steps=(5,))
    changed.stages[0].name = "other"
    with pytest.raises(ConfigError, match="stage 0 'align'"):
        run(changed)
    wider = recipe(tmp_path, steps=(6,))
    wider.model.args["width"] = 64
    with pytest.raises(CheckpointError, match=r"shape \(12, 32\).*\(12, 64\)"):
        run(wider)


def test_damaged_results_are_recognised(tmp_path: Path) -> None:
    run(recipe(tmp_path, steps=(1,)))
    file = tmp_path / "final" / "trainable.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="sha256"):
        load_parts(small(), tmp_path / "final")
    with pytest.raises(CheckpointError, match="missing"):
        load_parts(small(), tmp_path)
    with pytest.raises(ConfigError, match="no tracker 'nobody'"):
        run(recipe(tmp_path, report_to=["nobody"]))
