"""GRPO: rewards, the shelf, hidden states as TRL reads them, and a run that goes on where it stopped and learns what pays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data_recipes.synth.shapes import conversations
from tests.tiny import tiny_assistant
from train import main
from train.grpo import GrpoRecipe, Policy, answers, load_grpo, one_turn, overlap, shelve, well_formed
from train.grpo import train as run_grpo
from train.stages import Call
from vlm.chat import Assistant
from vlm.errors import ConfigError, DataError, TrainingError
from vlm.time import Span, make_codec

pytestmark = [  # what TRL does with transformers 5.24 is not ours to mend
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning"),
]
RELATIVE = make_codec("relative", num_tokens=101)
DATA = {"split": "train", "seed": 3, "size": 6, "level": "short", "image_size": 32, "kinds": ("when",)}


def shelf(assistant: Assistant, count: int = 4) -> tuple[Policy, list[Any]]:
    policy = Policy(assistant.model.config)
    policy.load_state_dict(assistant.model.state_dict())
    prompts = shelve(policy.eval(), assistant.processor, [one_turn(conversations(**DATA)[i]) for i in range(count)])  # type: ignore[arg-type]
    policy.shelf = {p.ids: p for p in prompts}
    return policy, prompts


@pytest.mark.parametrize(
    ("raw", "iou", "form"),
    [
        ("from <t10> to <t20>", 1.0, 1.0),
        ("<t10> <t30>", 0.5, 1.0),
        ("from <t10> to <t20>, from <t40> to <t50>", 1.0, 0.0),
        ("from 10 s to 20 s", 1.0, 0.0),
        ("<t10>", 0.0, 0.0),
        ("I do not know", 0.0, 0.0),
    ],
)
def test_rewards(raw: str, iou: float, form: float) -> None:
    assert overlap(raw, Span(10, 20), 100.0, RELATIVE) == pytest.approx(iou)
    assert well_formed(raw, 100.0, RELATIVE) == form


@torch.no_grad()
def test_hidden_states_are_those_of_the_whole_model_whatever_the_padding() -> None:
    assistant = tiny_assistant()
    policy, prompts = shelf(assistant)
    tail = [5, 6, 7]
    longest = max(len(p.ids) for p in prompts)
    ids = torch.tensor([[0] * (longest - len(p.ids)) + list(p.ids) + tail for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p.ids)) + [1] * (len(p.ids) + 3) for p in prompts])
    hidden = policy.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    for row, prompt in enumerate(prompts):
        alone = assistant.model(input_ids=torch.tensor([[*prompt.ids, *tail]]), **prompt.media).logits[0, -4:]
        torch.testing.assert_close(policy.get_output_embeddings()(hidden[row, -4:]), alone, atol=1e-4, rtol=1e-4)
    with pytest.raises(TrainingError, match="not on the shelf"):
        policy.prompt_of((1, 2, 3))


def test_answers_differ_within_a_group_and_end_at_a_stop_token() -> None:
    policy, prompts = shelf(tiny_assistant())
    torch.manual_seed(0)
    said = answers(policy, [prompts[0]] * 6, 1.0, 8, stop=set(range(200)))
    assert len({tuple(row) for row in said}) > 1
    with torch.no_grad():  # a model that would say nothing but <video>
        policy.get_output_embeddings().weight[policy.config.video_token_id] *= 100
    assert all(policy.config.video_token_id not in row for row in answers(policy, [prompts[0]] * 6, 1.0, 8, stop=set()))
    with torch.no_grad():
        policy.get_output_embeddings().weight[policy.config.video_token_id] /= 100
    assert all(len(row) <= 8 and all(t >= 200 for t in row[:-1]) for row in said)
    cold = answers(policy, [prompts[0], prompts[1]], 1e-4, 5, stop=set())
    greedy = policy.base_model(torch.tensor([prompts[0].ids]), torch.ones(1, len(prompts[0].ids), dtype=torch.long))
    assert cold[0][0] == int(policy.get_output_embeddings()(greedy.last_hidden_state[0, -1]).argmax())


def recipe(folder: Path, **changes: Any) -> GrpoRecipe:
    call = Call("data_recipes.synth.shapes:conversations", {k: v for k, v in DATA.items() if k != "seed"})
    small: dict[str, Any] = {
        "samples": 6,
        "steps": 3,
        "prompts": 2,
        "generations": 4,
        "save_every": 1,
        "max_new_tokens": 4,
    }
    return GrpoRecipe(str(folder / "model"), call, str(folder / "run"), **{**small, **changes})


@pytest.fixture
def start(tmp_path: Path) -> Path:
    pytest.importorskip("trl")
    tiny = tiny_assistant()
    tiny.model.save_pretrained(tmp_path / "model")
    tiny.processor.save_pretrained(tmp_path / "model")
    return tmp_path


def test_a_run_changes_what_may_train_and_leaves_an_ordinary_model(start: Path) -> None:
    import vlm

    final = run_grpo(recipe(start, learning_rate=1e-2))
    before, after = (vlm.load(str(f)).model.state_dict() for f in (start / "model", final))
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed <= {"language_model"}
    history = json.loads((start / "run/history.json").read_text())
    assert [h["step"] for h in history if "reward" in h] == [1, 2, 3]


def test_a_run_goes_on_from_its_checkpoint(start: Path) -> None:
    run_grpo(recipe(start, steps=2))
    run_grpo(recipe(start, steps=4))
    assert [h["step"] for h in json.loads((start / "run/history.json").read_text()) if "reward" in h] == [1, 2, 3, 4]


def test_recipes_are_read_and_misuse_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_grpo("grpo_nano", ["steps=7"]).steps == 7
    assert main("grpo_nano", ["steps=7"], dry_run=True) == 0
    assert "7 steps of 8 questions with 8 answers each" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"grpo_nano\.yaml: .*stepz"):
        load_grpo("grpo_nano", ["stepz=7"])
    with pytest.raises(ConfigError, match="generations=1"):
        load_grpo("grpo_nano", ["generations=1"])
    with pytest.raises(ConfigError, match="steps=0"):
        load_grpo("grpo_nano", ["steps=0"])
    assistant = tiny_assistant()
    stills = conversations("train", seed=1, size=1, level="short", image_size=32, kinds=("list",))
    with pytest.raises(DataError, match="no true span"):
        shelve(assistant.model, assistant.processor, [one_turn(stills[0])])
