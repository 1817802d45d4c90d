"""Learning without forgetting: no loss while nothing has changed, a pull back once it has, and what is new left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_assistant
from vlm.errors import ConfigError
from vlm.plugins import build_plugin
from vlm.plugins.remember import Remember


@pytest.fixture
def model(tmp_path: Path) -> Any:
    made = tiny_assistant().model
    made.save_pretrained(tmp_path / "before")
    return made


def batch(model: Any) -> dict[str, Any]:
    ids = torch.arange(24).reshape(2, 12) % 20
    labels = ids.clone()
    labels[0, :5] = labels[1, :9] = -100
    return {"input_ids": ids, "labels": labels}


def loss(plugin: Remember, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    return plugin.losses(inputs, model.train()(**inputs))["remember"]


def test_the_divergence_is_that_of_the_words_at_the_targets(model: Any, tmp_path: Path) -> None:
    plugin = Remember(str(tmp_path / "before"), weight=2.0)
    assert plugin.prepare(model) is model
    inputs = batch(model)
    assert float(loss(plugin, model, inputs)) == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        before = model.eval()(input_ids=inputs["input_ids"]).logits.log_softmax(-1)
        for p in model.language_model.parameters():
            p.add_(0.05 * torch.randn_like(p))
        now = model.eval()(input_ids=inputs["input_ids"]).logits.log_softmax(-1)
    counted = inputs["labels"][:, 1:] != -100
    wanted = (before.exp() * (before - now)).sum(-1)[:, :-1][counted].mean()
    found = loss(plugin, model, inputs)
    assert float(found) == pytest.approx(2.0 * float(wanted), rel=1e-4) and float(found) > 0
    found.backward()
    assert model.get_output_embeddings().weight.grad.abs().sum() > 0


def test_only_what_it_knew_counts_if_asked(model: Any, tmp_path: Path) -> None:
    inputs = batch(model)
    with torch.no_grad():
        said = model.eval()(input_ids=inputs["input_ids"]).logits.argmax(-1)
    inputs["labels"][0, 6] = said[0, 5]  # one target that it gets right
    knew = (inputs["labels"][:, 1:] != -100) & (said[:, :-1] == inputs["labels"][:, 1:])
    plugin = Remember(str(tmp_path / "before"), right=True)
    plugin.prepare(model)
    with torch.no_grad():
        before = model.eval()(input_ids=inputs["input_ids"]).logits.log_softmax(-1)
        for p in model.language_model.parameters():
            p.add_(0.05 * torch.randn_like(p))
        now = model.eval()(input_ids=inputs["input_ids"]).logits.log_softmax(-1)
    wanted = (before.exp() * (before - now)).sum(-1)[:, :-1][knew].mean()
    assert 0 < int(knew.sum()) < int((inputs["labels"][:, 1:] != -100).sum())
    assert float(loss(plugin, model, inputs).detach()) == pytest.approx(float(wanted), rel=1e-4)
    nothing = {**inputs, "labels": torch.where(knew.any(), inputs["labels"], -100).clone()}
    nothing["labels"][:, 1:][knew] = -100
    assert float(loss(plugin, model, nothing).detach()) == 0.0


def test_following_it_leads_back(model: Any, tmp_path: Path) -> None:
    plugin = Remember(str(tmp_path / "before"))
    plugin.prepare(model)
    inputs = batch(model)
    with torch.no_grad():
        for p in model.language_model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        found = loss(plugin, model, inputs)
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        losses.append(float(found))
    assert losses[-1] < 0.3 * losses[0]


def test_what_is_new_and_what_is_long_is_left_alone(model: Any, tmp_path: Path) -> None:
    inputs = batch(model)
    for options, extra in (
        ({"unless": ["attention_mask"]}, {"attention_mask": torch.ones(2, 12)}),
        ({"longest": 11}, {}),
    ):
        plugin = Remember(str(tmp_path / "before"), **options)
        plugin.prepare(model)
        with torch.no_grad():
            model.get_input_embeddings().weight.add_(1.0)
        assert float(loss(plugin, model, {**inputs, **extra})) == 0.0
        plugin.finish(model)
    assert not model.get_decoder()._forward_hooks


def test_what_it_cannot_do_is_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        build_plugin("remember", {"teacher": str(tmp_path / "nowhere")}).prepare(model)
    plugin = Remember(str(tmp_path / "before"))
    plugin.prepare(model)
    with pytest.raises(ConfigError, match="packed"):
        plugin.losses({**batch(model), "documents": [12]}, model(**batch(model)))
    other = tiny_assistant(text={"vocab_size": 420}).model
    with pytest.raises(ConfigError, match="words"):
        Remember(str(tmp_path / "before")).prepare(other)
