"""The composite model: parity, batching, round trips, generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.tiny import random_frames, tiny_assistant, vision_config
from vlm.chat import Assistant
from vlm.compat import CACHE_NAME, CACHE_NAMES
from vlm.errors import AlignmentError, CheckpointError
from vlm.model import VLMForConditionalGeneration
from vlm.time.slowfast import pooler_of


def question(text: str, frames: int = 3, seed: int = 0) -> list[dict[str, Any]]:
    video = {"type": "video", "video": random_frames(frames, seed=seed), "num_frames": frames}
    return [{"role": "user", "content": [video, {"type": "text", "text": text}]}]


@pytest.fixture(scope="module")
def tiny() -> Assistant:
    return tiny_assistant()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("llm", ["llama", "qwen2", "mistral"])
def test_logits_equal_a_straight_line_reference(llm: str, tied: bool) -> None:
    assistant = tiny_assistant(llm=llm, text={"tie_word_embeddings": tied})
    model, batch = assistant.model, assistant.processor(question("what?"))
    features = model.vision_tower.model(batch["pixel_values"], output_hidden_states=True).hidden_states[-2]
    tokens = model.mm_projector.layers(features).flatten(0, 1)
    embeds = model.language_model.get_input_embeddings()(batch["input_ids"]).clone()
    places = (batch["input_ids"][0] == model.config.video_token_id).nonzero().flatten()
    assert len(places) == len(tokens) == 3 * 4
    for place, token in zip(places, tokens, strict=True):
        embeds[0, place] = token
    expected = model.language_model(inputs_embeds=embeds).logits
    torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-5, atol=1e-5)


def test_batched_logits_equal_single_ones(tiny: Assistant) -> None:
    conversations = [
        question("a", 2, 1),
        question("a much longer question?", 5, 2),
        [{"role": "user", "content": "no video"}],
    ]
    together = tiny.model(**tiny.processor(conversations)).logits
    for row, conversation in enumerate(conversations):
        alone = tiny.model(**tiny.processor(conversation)).logits[0]
        torch.testing.assert_close(together[row, -len(alone) :], alone, rtol=1e-4, atol=1e-5)


def test_right_padding_gives_the_same_loss_as_single_examples(tiny: Assistant) -> None:
    answers = [
        [*question("a", 2, 1), {"role": "assistant", "content": "yes"}],
        [*question("bcd", 4), {"role": "assistant", "content": "no!"}],
    ]
    examples = [tiny.processor.training_example(a) for a in answers]
    batch = tiny.processor.collate(examples)
    counts = [int((e["labels"] != -100).sum()) for e in examples]
    single = [tiny.model(**tiny.processor.collate([e])).loss * n for e, n in zip(examples, counts, strict=True)]
    torch.testing.assert_close(tiny.model(**batch).loss, sum(single) / sum(counts))
    only = tiny.model(**batch, loss_only=True)
    assert only.logits is None
    torch.testing.assert_close(only.loss, tiny.model(**batch).loss)
    torch.testing.assert_close(tiny.model(**batch, num_items_in_batch=10).loss * 10, sum(single))


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_the_cache_goes_by_its_newer_and_its_older_name(tiny: Assistant, name: str) -> None:
    ids = torch.arange(5, 17)[None]
    with torch.inference_mode():
        whole = tiny.model(input_ids=ids).logits
        first = tiny.model(input_ids=ids[:, :7], use_cache=True)
        rest = tiny.model(input_ids=ids[:, 7:], use_cache=True, **{name: first[CACHE_NAME]}).logits
    assert torch.allclose(torch.cat([first.logits, rest], 1), whole, atol=1e-5)


def test_loss_is_finite_without_targets(tiny: Assistant) -> None:
    batch = tiny.processor.collate([tiny.processor.training_example(question("a"))])
    assert tiny.model(**batch).loss.item() == 0.0


def test_save_and_load_is_bit_exact_through_the_auto_classes(tiny: Assistant, tmp_path: Path) -> None:
    tiny.model.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(model) is VLMForConditionalGeneration
    ours, theirs = tiny.model.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    first, second = tiny.processor(question("what?")), processor(question("what?"))
    assert torch.equal(first["input_ids"], second["input_ids"])
    assert torch.equal(tiny.model(**first).logits, model.eval()(**second).logits)
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_loading_is_strict_and_names_the_component(tiny: Assistant, tmp_path: Path, damage: str) -> None:
    tiny.model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if damage == "missing":
        del weights["mm_projector.layers.2.bias"]
    elif damage == "unexpected":
        weights["mm_projector.layers.9.bias"] = torch.zeros(2)
    else:
        weights["mm_projector.layers.2.bias"] = torch.zeros(2)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="mm_projector"):
        VLMForConditionalGeneration.from_pretrained(tmp_path)


def test_disagreeing_counts_raise_with_both_numbers(tiny: Assistant) -> None:
    batch = tiny.processor(question("what?"))
    batch["frames_per_medium"] = torch.tensor([2])
    batch["pixel_values"] = batch["pixel_values"][:2]
    with pytest.raises(AlignmentError, match=r"12 visual placeholder .* 8 features"):
        tiny.model(**batch)
    batch["frames_per_medium"] = torch.tensor([3])
    with pytest.raises(AlignmentError, match="sums to 3 but 2 frames"):
        tiny.model(**batch)


def test_generate_with_beams_repeats_the_media_correctly(tiny: Assistant) -> None:
    one, two = question("a", 2, 1), question("bb", 4, 2)
    options: dict[str, Any] = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    together = tiny.model.generate(**tiny.processor([one, two]), **options)
    for row, conversation in enumerate((one, two)):
        alone = tiny.model.generate(**tiny.processor(conversation), **options)
        assert together[row, -5:].tolist() == alone[0, -5:].tolist()


def test_gradients_reach_every_part_and_checkpointing_does_not_change_them() -> None:
    assistant = tiny_assistant()
    model = assistant.model.train()
    batch = assistant.processor.collate(
        [assistant.processor.training_example([*question("a"), {"role": "assistant", "content": "yes"}])]
    )
    model(**batch).loss.backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    unused = [n for n, p in model.named_parameters() if n not in plain]
    assert all("vision_tower" in n for n in unused), unused
    model.zero_grad()
    model.activation_checkpointing_enable({"use_reentrant": False})
    model(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        if name in plain:
            torch.testing.assert_close(parameter.grad, plain[name], rtol=1e-4, atol=1e-7)


def test_half_precision_sees_the_same_pixels() -> None:
    assistant = tiny_assistant()
    assistant.model.to(torch.bfloat16)
    assert assistant.chat("what?", video=random_frames(3), num_frames=3, max_new_tokens=2).usage.frames == 3


def test_attention_implementation_per_tower(tiny: Assistant, tmp_path: Path) -> None:
    tiny.model.save_pretrained(tmp_path)
    choice = {"text_config": "eager", "vision_config": "sdpa"}
    model = VLMForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=choice)
    assert model.language_model.config._attn_implementation == "eager"
    assert model.vision_tower.model.config._attn_implementation == "sdpa"
    batch = tiny.processor(question("what?"))
    torch.testing.assert_close(model.eval()(**batch).logits, tiny.model(**batch).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "pooling",
    [
        {"mode": "slowfast", "pool_size": 2},
        {"mode": "tsp", "pool_sizes": [[2, 1, 1]]},
        {"mode": "mean"},
        {"mode": "segments"},
        {"mode": "changes"},
    ],
    ids=lambda p: p["mode"],
)
def test_every_pooling_mode_runs_through_the_model(pooling: dict[str, Any]) -> None:
    assistant = tiny_assistant(pooling=pooling)
    prompt = assistant.processor.prompt(question("what?", frames=4))
    batch = assistant.processor(question("what?", frames=4))
    assert torch.isfinite(assistant.model(**batch).logits).all()
    pooler = pooler_of(pooling)
    assert len(prompt.spans) == pooler.count(4, assistant.model.token_grid, prompt.media[0].segments)


def test_pooling_shots_before_the_connector_counts_the_same() -> None:
    assistant = tiny_assistant(pooling={"mode": "segments", "before_connector": True})
    batch = assistant.processor(question("what?", frames=6))
    assert torch.isfinite(assistant.model(**batch).logits).all()


@pytest.mark.parametrize("name", ["clip_vision_model", "dinov2"])
@pytest.mark.parametrize("feature", ["patch", "cls_patch"])
def test_other_transformers_towers(name: str, feature: str) -> None:
    vision = vision_config(name, select_feature=feature)
    assistant = tiny_assistant(vision=vision, connector={"type": "linear"})
    features = assistant.model.encode_frames(torch.zeros(2, 3, 32, 32))
    assert features.shape == (2, 16 + (feature == "cls_patch"), 32)


def test_a_loaded_prototype_connector_computes_the_same(tmp_path: Path) -> None:
    connector = {"type": "prototypes", "num_prototypes": 7, "tokens_per_region": 2}
    assistant = tiny_assistant(connector=connector, pooling={"mode": "segments", "before_connector": True})
    assistant.model.save_pretrained(tmp_path)
    loaded = VLMForConditionalGeneration.from_pretrained(tmp_path)
    batch = assistant.processor(question("what?", frames=4))
    assert torch.equal(loaded(**batch).logits, assistant.model(**batch).logits)
