"""The nano tokenizer: built the same every time, whole words for the world, any text, one token per role marker."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from data_recipes.synth.nano_tokenizer import build_nano_tokenizer
from data_recipes.synth.shapes_render import COLOURS, SHAPES


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_nano_tokenizer()


def test_it_is_deterministic_and_small(tokenizer: PreTrainedTokenizerFast) -> None:
    assert build_nano_tokenizer().get_vocab() == tokenizer.get_vocab()
    assert 500 <= len(tokenizer) <= 1000


@pytest.mark.parametrize(
    "text", ["When does the red circle appear?", "Zażółć gęślą jaźń", "日本語 🙂", "a\n\tb  c 12.5"]
)
def test_any_text_survives(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_words_of_the_world_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    for word in (*SHAPES, *COLOURS, "from", "to", "yes", "no"):
        assert len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1, word
    assert len(tokenizer("2048", add_special_tokens=False)["input_ids"]) == 4


def test_the_template_marks_roles_with_one_token_and_masks_answers(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Is there a star?"}]},
        {"role": "assistant", "content": "yes"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|><video>Is there a star?<|end|><|assistant|>yes<|end|><|assistant|>"
    for marker in ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"):
        assert len(tokenizer(marker, add_special_tokens=False)["input_ids"]) == 1
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    answer = [i for i, on in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if on]
    assert tokenizer.decode(answer) == "yes<|end|>"
