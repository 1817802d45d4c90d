"""Two halves that were saved by transformers become one model, whole and unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

import vlm
from tests.tiny import byte_tokenizer, random_frames, text_config
from vlm.compose import compose
from vlm.errors import CheckpointError

TOWER = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 8,
    "image_size": 32,
}
WORDS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llm")
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    AutoModelForCausalLM.from_config(text_config("qwen2", vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def eyes(kind: str, folder: Path) -> Any:
    """A model with a visual half, saved; that half."""
    torch.manual_seed(1)
    if kind == "dinov2":
        alone = Dinov2Model(Dinov2Config(**TOWER)).eval()
        alone.save_pretrained(folder)
        return alone
    if kind == "clip":
        both: Any = CLIPModel(
            CLIPConfig(vision_config=TOWER, text_config={**WORDS, "max_position_embeddings": 8}, projection_dim=16)
        )
    else:
        both = SiglipModel(SiglipConfig(vision_config=TOWER, text_config={**WORDS, "max_position_embeddings": 8}))
        SiglipImageProcessor(image_mean=[0.4] * 3, image_std=[0.3] * 3).save_pretrained(folder)
    both.eval().save_pretrained(folder)
    return both.vision_model


@pytest.mark.parametrize("kind", ["siglip", "clip", "dinov2"])
@torch.no_grad()
def test_both_halves_are_as_they_were(kind: str, llm: Path, tmp_path: Path) -> None:
    half = eyes(kind, tmp_path)
    assistant = compose(llm, tmp_path)
    model = assistant.model
    pixels = torch.randn(2, 3, 32, 32)
    expected = half(pixels, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(model.encode_frames(pixels), expected[:, expected.shape[1] - 16 :])
    own = AutoModelForCausalLM.from_pretrained(llm)
    rows = own.get_input_embeddings().weight
    table = model.get_input_embeddings().weight
    assert torch.equal(table[: len(rows)], rows) and len(table) == len(assistant.processor.tokenizer) > len(rows)
    times = table[model.config.time_token_ids]
    near, far = (torch.cosine_similarity(times[k:], times[:-k]).mean() for k in (1, 40))
    assert near > 0.95 > far + 0.5
    ids = torch.arange(40)[None]
    torch.testing.assert_close(model.language_model(ids).logits[..., : len(rows)], own(ids).logits)
    if kind == "siglip":
        assert list(assistant.processor.pixels["image_mean"]) == [0.4] * 3
    reply = assistant.chat("when?", video=random_frames(3), num_frames=3, max_new_tokens=3)
    assert reply.usage.frames == 3


def test_a_composed_model_is_saved_and_loaded_like_any_other(llm: Path, tmp_path: Path) -> None:
    eyes("siglip", tmp_path / "eyes")
    made = compose(
        llm, tmp_path / "eyes", connector={"type": "mlp2x_gelu"}, pooling={"mode": "slowfast", "pool_size": 2}
    )
    made.model.save_pretrained(tmp_path / "whole")
    made.processor.save_pretrained(tmp_path / "whole")
    again = vlm.load(tmp_path / "whole")
    frames = random_frames(4)
    first, second = (a.chat("when?", video=frames, num_frames=4, max_new_tokens=8).raw for a in (made, again))
    assert first == second


def test_what_cannot_be_read_is_named(llm: Path, tmp_path: Path) -> None:
    eyes("siglip", tmp_path / "eyes")
    with pytest.raises(CheckpointError, match=r"cannot read the tokenizer .*missing"):
        compose(tmp_path / "missing", tmp_path / "eyes")
    with pytest.raises(CheckpointError, match="cannot read the vision model"):
        compose(llm, tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="vision model"):
        compose(llm, llm)
