"""How well a model continues true conversations (teacher forcing), by kind of question.

A forward pass per conversation and no generation: cheap enough to compare two trainings, or to watch one. An answer counts as right when
every token of it is the likeliest one after the true tokens before it, so the figures are above those of free generation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from data_recipes.sample import Sample
from vlm.errors import DataError
from vlm.model import VLMForConditionalGeneration
from vlm.processor import VLMProcessor


@dataclass
class Score:
    """Of the answers to one kind of question.

    Attributes:
        answers: How many.
        right: How many are predicted without an error.
        nats: Sum of their negative log likelihoods.
    """

    answers: int = 0
    right: int = 0
    nats: float = 0.0

    @property
    def share(self) -> float:
        """Share of right answers."""
        return self.right / max(1, self.answers)


@torch.inference_mode()
def teacher_forced(
    model: VLMForConditionalGeneration, processor: VLMProcessor, samples: Iterable[Sample]
) -> dict[str, Score]:
    """Scores by ``kind`` of the turns in ``sample.meta["turns"]``.

    Raises:
        DataError: A conversation has another number of answers than turns.
    """
    scores: dict[str, Score] = {}
    model.eval()
    for sample in samples:
        turns = sample.meta["turns"]
        if not turns:
            continue
        batch = processor.collate([processor.training_example(sample.messages)])
        logits = model(**batch, loss_only=False).logits[0, :-1].float()
        labels = batch["labels"][0, 1:]
        nats = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="none")
        hit = logits.argmax(-1) == labels
        answers = runs(labels != -100)
        if len(answers) != len(turns):
            raise DataError(f"{sample.id}: {len(answers)} answers to {len(turns)} questions")
        for turn, where in zip(turns, answers, strict=True):
            score = scores.setdefault(turn.kind, Score())
            score.answers += 1
            score.right += int(hit[where].all())
            score.nats += float(nats[where].sum())
    return dict(sorted(scores.items()))


def runs(mask: torch.Tensor) -> list[slice]:
    """Stretches of true entries of a bool ``[L]`` tensor."""
    edges = torch.diff(mask.int(), prepend=mask.new_zeros(1).int(), append=mask.new_zeros(1).int())
    starts, ends = (torch.nonzero(edges == sign).flatten().tolist() for sign in (1, -1))
    return [slice(start, end) for start, end in zip(starts, ends, strict=True)]
