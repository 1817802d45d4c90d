"""Teacher-forced scores: the sums agree with the model's own loss, and a right first answer is the one it writes freely."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("timm")

import vlm
from data_recipes.sample import Sample
from data_recipes.synth.shapes import conversations
from eval.teacher import runs, teacher_forced
from vlm.errors import DataError


def test_runs() -> None:
    assert runs(torch.tensor([1, 1, 0, 1, 0, 0, 1]).bool()) == [slice(0, 2), slice(3, 4), slice(6, 7)]
    assert runs(torch.zeros(3).bool()) == [] and runs(torch.ones(2).bool()) == [slice(0, 2)]


def test_scores_agree_with_loss_and_generation() -> None:
    nano = vlm.load("nano")
    data = conversations("heldout", seed=4, size=100, level="stills", turns=3)
    samples = [s for s in (data[i] for i in range(8)) if s.meta["turns"]]
    for sample in samples:
        scores = teacher_forced(nano.model, nano.processor, [sample])
        assert sum(s.answers for s in scores.values()) == len(sample.meta["turns"])
        batch = nano.processor.collate([nano.processor.training_example(sample.messages)])
        with torch.inference_mode():
            loss = float(nano.model(**batch).loss)
        tokens = int((batch["labels"][:, 1:] != -100).sum())
        assert sum(s.nats for s in scores.values()) == pytest.approx(loss * tokens, rel=1e-3)
        turn = sample.meta["turns"][0]
        one = sample.messages[:2]
        first = teacher_forced(nano.model, nano.processor, [Sample("one", one, {"turns": [turn]})])
        written = nano.chat(turn.question, image=one[0]["content"][0]["image"], max_new_tokens=40).text
        assert (written == turn.answer) == bool(first[turn.kind].right)


def test_another_number_of_turns_is_told() -> None:
    nano = vlm.load("nano")
    sample = conversations("heldout", seed=4, size=10, level="stills", turns=2)[0]
    sample.meta["turns"] = sample.meta["turns"][:1]
    with pytest.raises(DataError, match="2 answers to 1"):
        teacher_forced(nano.model, nano.processor, [sample])
