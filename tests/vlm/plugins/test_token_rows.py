"""Training only some vocabulary rows: nothing else moves, tied heads follow, finishing leaves a plain model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny import tiny_assistant
from vlm.errors import ConfigError
from vlm.plugins.token_rows import TokenRows


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_only_the_rows_move_and_the_model_is_plain_afterwards(tied: bool) -> None:
    assistant = tiny_assistant(text={"tie_word_embeddings": tied})
    model: Any = assistant.model
    processor = assistant.processor
    ids = [processor.tokenizer.convert_tokens_to_ids(t) for t in processor.codec.tokens()]
    before = model.get_input_embeddings().weight.detach().clone()
    messages = [{"role": "user", "content": "when?"}, {"role": "assistant", "content": "<t3> to <t5>"}]
    batch = processor.collate([processor.training_example(messages)])
    loss = model(**batch).loss
    keys = set(model.state_dict())
    plugin = TokenRows(ids=ids)
    model = plugin.prepare(model)
    torch.testing.assert_close(model(**batch).loss, loss)
    trained = [p for n, p in model.named_parameters() if n.endswith("token_rows")]
    assert len(trained) == 1 and trained[0].shape == (len(ids), 48)
    model.requires_grad_(False)
    trained[0].requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    model(**batch).loss.backward()
    optimizer.step()
    after_loss = model(**batch).loss.detach()
    model = plugin.finish(model)
    after = model.get_input_embeddings().weight.detach()
    moved = (after != before).any(1).nonzero().flatten().tolist()
    assert set(moved) <= set(ids) and len(moved) >= 2
    assert set(model.state_dict()) == keys
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    torch.testing.assert_close(model(**batch).loss.detach(), after_loss)
    assert after_loss < loss


def test_ids_outside_the_table_are_named() -> None:
    with pytest.raises(ConfigError, match="vocabulary of 400"):
        TokenRows(first=395, count=10).prepare(tiny_assistant().model)
