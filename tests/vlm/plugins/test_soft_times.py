"""Soft cross-entropy over time tokens: golden weights, the loss against plain loops, and ordinary cross-entropy where nothing is soft."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.tiny import tiny_assistant
from vlm.errors import ConfigError
from vlm.plugins import build_plugin
from vlm.plugins.soft_times import SoftTimes, soft_targets


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_assistant(time={"codec": "relative", "num_tokens": 10}).model.train()


def batch(model: Any) -> dict[str, Any]:
    """Two rows; five targets are times, at both ends and inside."""
    first = model.config.time_token_ids[0]
    ids = torch.arange(24).reshape(2, 12) % 20
    ids[0, 6:9] = torch.tensor([first, first + 4, first + 9])
    ids[1, 3:5] = torch.tensor([first + 1, first + 7])
    labels = ids.clone()
    labels[0, :3] = labels[1, :2] = -100
    return {"input_ids": ids, "labels": labels}


def total(plugin: SoftTimes, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The whole loss as training has it."""
    plugin.prepare(model)
    out = model(**inputs)
    loss: torch.Tensor = out.loss + plugin.losses(inputs, out)["soft_times"]
    plugin.finish(model)
    return loss


def test_weights_of_one_token_of_deviation() -> None:
    wanted = soft_targets(100, 1.0)
    offsets = [0.0044, 0.0540, 0.2420, 0.3991, 0.2420, 0.0540, 0.0044]
    assert wanted[50, 47:54].tolist() == pytest.approx(offsets, abs=2e-4)
    assert torch.allclose(wanted.sum(1), torch.ones(100))
    assert wanted[0, 0] == pytest.approx(
        0.3991 / (0.3991 + 0.2420 + 0.0540 + 0.0044), abs=1e-3
    )  # renormalised at the edge


@torch.no_grad()
def test_the_loss_is_that_of_plain_loops(model: Any) -> None:
    inputs, ids, std = batch(model), model.config.time_token_ids, 1.5
    scores = model(input_ids=inputs["input_ids"]).logits.double().log_softmax(-1)
    wanted, count = 0.0, 0
    for row in range(2):
        for place in range(11):
            target = int(inputs["labels"][row, place + 1])
            if target == -100:
                continue
            count += 1
            if target not in ids:
                wanted -= float(scores[row, place, target])
                continue
            weights = [math.exp(-((ids.index(target) - j) ** 2) / (2 * std**2)) for j in range(len(ids))]
            wanted -= sum(w * float(scores[row, place, i]) for w, i in zip(weights, ids, strict=True)) / sum(weights)
    assert float(total(SoftTimes(std=std), model, inputs)) == pytest.approx(wanted / count, rel=1e-5)


@pytest.mark.parametrize("std", [0.0, 0.05])
def test_without_deviation_it_is_ordinary_cross_entropy(model: Any, std: float) -> None:
    inputs = batch(model)
    model.zero_grad()
    plain = model(**inputs).loss
    plain.backward()
    wanted = model.get_output_embeddings().weight.grad.clone()
    model.zero_grad()
    soft = total(SoftTimes(std=std), model, inputs)
    soft.backward()
    torch.testing.assert_close(soft, plain)
    torch.testing.assert_close(model.get_output_embeddings().weight.grad, wanted)


def test_a_near_miss_costs_less_than_a_far_one(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, vocabulary = model.config.time_token_ids[0], model.get_output_embeddings().weight.shape[0]
    labels = torch.full((1, 12), -100)
    labels[0, 7] = first + 4
    inputs = {"input_ids": torch.arange(12)[None] % 20, "labels": labels}

    def cost(said: int) -> float:
        surely = torch.zeros(1, 12, vocabulary)
        surely[..., said] = 10.0
        with monkeypatch.context() as patched:
            patched.setattr(model.get_output_embeddings(), "forward", lambda hidden: surely[:, : len(hidden)][0])
            plugin = SoftTimes(std=2.0)
            plugin.prepare(model)
            model.get_decoder()(input_ids=inputs["input_ids"])
            hard = torch.nn.functional.cross_entropy(surely[0, :1], labels[0, 7:8])
            soft = plugin.losses(inputs, None)["soft_times"] + hard
            plugin.finish(model)
        return float(soft.detach())

    assert cost(first + 4) < cost(first + 5) < cost(first + 9) - 0.5


def test_samples_without_times_are_left_alone(model: Any) -> None:
    ids = torch.arange(12)[None] % 20
    inputs = {"input_ids": ids, "labels": ids}
    torch.testing.assert_close(total(SoftTimes(), model, inputs), model(**inputs).loss)


def test_what_cannot_work_is_refused(model: Any) -> None:
    with pytest.raises(ConfigError, match="std=-1"):
        build_plugin("soft_times", {"std": -1.0})
    with pytest.raises(ConfigError, match="no time tokens"):
        SoftTimes().prepare(tiny_assistant(time={"codec": "seconds"}).model)
    with pytest.raises(ConfigError, match=r"no time tokens .*99999"):
        SoftTimes(ids=[1, 99999]).prepare(model)


def test_ids_of_time_tokens_survive_saving(tmp_path: Any) -> None:
    made = tiny_assistant(time={"codec": "relative", "num_tokens": 10})
    ids = made.model.config.time_token_ids
    assert made.processor.tokenizer.convert_ids_to_tokens(ids) == [f"<t{i}>" for i in range(10)]
    made.model.save_pretrained(tmp_path)
    assert type(made.model).from_pretrained(tmp_path).config.time_token_ids == ids
