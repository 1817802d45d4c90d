"""A real, tiny model that has learnt one answer by heart, so that the page's tests know what it will say and when."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import random_frames, tiny_assistant
from vlm.chat import Assistant

QUESTION = "When is it bright?"
ANSWER = "It is bright from {t:2.0} to {t:3.0}, I think."  # of the 4 s that four frames given as arrays last
SPOKEN = "It is bright from 1.0 s to 1.5 s, I think."  # what that is in a clip of 2 s
SPAN = (1.0, 1.5)


def teach(assistant: Assistant, *, steps: int = 120) -> float:
    """Overfit the language model and the connector to `ANSWER`, twice in a row; returns the last loss."""
    model = assistant.model.train()
    model.vision_tower.requires_grad_(False)
    reply = {"role": "assistant", "content": ANSWER}
    part = {"type": "video", "video": random_frames(4), "num_frames": 4}
    first = {"role": "user", "content": [part, {"type": "text", "text": QUESTION}]}
    batch = assistant.processor.training_example([first, reply, {"role": "user", "content": "And then?"}, reply])
    batch = assistant.processor.collate([batch])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return loss.item()


@pytest.fixture(scope="session")
def parrot() -> Assistant:
    """The tiny model that says `SPOKEN` whatever it is asked."""
    assistant = tiny_assistant(time={"codec": "relative", "num_tokens": 21, "interleave": True})
    assert teach(assistant) < 0.05
    return assistant
