"""The lean decoder computes what transformers computes, leaves the model usable, and knows what it cannot do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model, save_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from vlm.compat import CACHE_NAME
from vlm.decode import KVCache, LlamaDecoder, ModuleDecoder, decoder_for, obstacle, supports
from vlm.errors import ConfigError
from vlm.generate import DecodeState, Sampling, stop_token_ids, stream_ids

SHAPE = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
TOLERANCE = 1e-5


def llama(**options: Any) -> LlamaForCausalLM:
    return _ready(LlamaForCausalLM, LlamaConfig(**{**SHAPE, "num_key_value_heads": 2, **options}))


def qwen2(**options: Any) -> Qwen2ForCausalLM:
    return _ready(Qwen2ForCausalLM, Qwen2Config(**{**SHAPE, "num_key_value_heads": 2, **options}))


def mistral(**options: Any) -> MistralForCausalLM:
    defaults = {**SHAPE, "num_key_value_heads": 1, "sliding_window": None}
    return _ready(MistralForCausalLM, MistralConfig(**{**defaults, **options}))


def _ready(kind: Any, config: Any) -> Any:
    """A model whose weights are large enough, biases and norms included, for any mistake to show in the logits."""
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3)
            if "norm" in name:
                parameter.add_(1.0)
    return model


class Wrapper(nn.Module):
    """What `stream_ids` needs of a model."""

    def __init__(self, language_model: Any) -> None:
        super().__init__()
        self.language_model = language_model


@torch.inference_mode()
def reference(model: Any, pieces: list[torch.Tensor]) -> list[torch.Tensor]:
    """Logits after each of several ``[1, L, D]`` pieces read one after the other by transformers."""
    cache = DynamicCache(config=model.config)
    return [model(inputs_embeds=p, **{CACHE_NAME: cache}, use_cache=True).logits[0, -1] for p in pieces]


def prompt(model: Any, *lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, n, model.config.hidden_size, generator=generator) for n in lengths]


MODELS = {
    "llama": llama,
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "llama, no groups": lambda: llama(num_key_value_heads=4),
    "llama, all biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama, wide heads": lambda: llama(head_dim=16),
    "llama, eager": lambda: llama(attn_implementation="eager"),
    "qwen2": qwen2,
    "qwen2, tied": lambda: qwen2(tie_word_embeddings=True),
    "mistral": mistral,
    "mistral, tied": lambda: mistral(tie_word_embeddings=True),
    "mistral, inside its window": lambda: mistral(sliding_window=64),
}
ROPES: dict[str, dict[str, Any]] = {
    "another base": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32},
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_transformers_over_several_turns(name: str) -> None:
    model = MODELS[name]()
    pieces = prompt(model, 9, 1, 1, 5, 1, 12, 1)
    expected = reference(copy.deepcopy(model), pieces)
    decoder, cache = decoder_for(model, tokens=30)
    assert isinstance(decoder, LlamaDecoder)
    for piece, logits in zip(pieces, expected, strict=True):
        torch.testing.assert_close(decoder.read(cache, piece), logits, rtol=TOLERANCE, atol=TOLERANCE)
    assert cache.length == 30


@pytest.mark.parametrize("name", ROPES)
def test_rotary_types_whose_frequencies_are_fixed(name: str) -> None:
    model = llama(rope_parameters=ROPES[name], max_position_embeddings=128)
    pieces = prompt(model, 40, 1, 8)
    expected = reference(copy.deepcopy(model), pieces)
    decoder, cache = decoder_for(model)
    assert isinstance(decoder, LlamaDecoder)
    for piece, logits in zip(pieces, expected, strict=True):
        torch.testing.assert_close(decoder.read(cache, piece), logits, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("tied", [True, False])
def test_a_step_reads_the_embedding_of_its_token(tied: bool) -> None:
    model = llama(tie_word_embeddings=tied)
    embeds = model.get_input_embeddings()(torch.tensor([[5, 11, 7]])).detach()
    expected = reference(copy.deepcopy(model), [embeds])[0]
    decoder, cache = decoder_for(model)
    for token in (5, 11, 7):
        logits = decoder.step(cache, token)
    torch.testing.assert_close(logits, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_cache_grows_and_keeps_what_it_holds() -> None:
    model = llama()
    pieces = prompt(model, *[7] * 9)
    roomy, cramped = KVCache(3, 2, 8, capacity=100), KVCache(3, 2, 8, capacity=10)
    decoder, _ = decoder_for(model)
    capacities = []
    for piece in pieces:
        expected = decoder.read(roomy, piece)
        assert torch.equal(decoder.read(cramped, piece), expected)
        capacities.append(cramped.capacity)
    assert capacities == [10, 14, 21, 28, 35, 43, 53, 66, 66]
    assert roomy.capacity == 100
    cramped.reserve(1000)
    assert cramped.capacity == 63 + 1000
    for grown, whole in zip(cramped.keys, roomy.keys, strict=True):
        assert torch.equal(grown[:, :63], whole[:, :63])


@pytest.mark.parametrize(
    "build", [llama, lambda: llama(num_key_value_heads=4), lambda: llama(rope_parameters=ROPES["llama3"])]
)
def test_a_prompt_read_in_pieces_is_the_same_prompt(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    (whole,) = prompt(model, 45)
    (expected,) = reference(copy.deepcopy(model), [whole])
    monkeypatch.setattr("vlm.decode.PIECE", 8)
    decoder, cache = decoder_for(model, tokens=45)
    torch.testing.assert_close(decoder.read(cache, whole), expected, rtol=TOLERANCE, atol=TOLERANCE)
    uneven = iter(whole.split([1, 20, 3, 21], dim=1))
    decoder, cache = decoder_for(model, tokens=45)
    torch.testing.assert_close(decoder.read(cache, uneven), expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert cache.length == cache.get_seq_length() == 45
    fallback = ModuleDecoder(model)
    cache = fallback.new_cache()
    torch.testing.assert_close(fallback.read(cache, iter(whole.split(20, 1))), expected, rtol=TOLERANCE, atol=TOLERANCE)
    with pytest.raises(ConfigError, match="no token"):
        decoder.read(decoder.new_cache(), iter([]))


def test_a_read_that_fails_leaves_the_cache_as_it_was() -> None:
    model = llama()
    good, next_one = prompt(model, 6, 2)
    decoder, cache = decoder_for(model)
    decoder.read(cache, good)
    with pytest.raises(RuntimeError):
        decoder.read(cache, next_one[:, :, :-1])
    with pytest.raises(RuntimeError):
        decoder.read(cache, iter([next_one, next_one[:, :, :-1]]))
    expected = reference(model, [good, next_one])[1]
    torch.testing.assert_close(decoder.read(cache, next_one), expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("build", [llama, qwen2, lambda: llama(tie_word_embeddings=True)])
def test_the_model_stays_what_it_was(build: Any, tmp_path: Path) -> None:
    model = build()
    original = copy.deepcopy(model)
    (piece,) = prompt(model, 8)
    decoder_for(model)
    assert all(torch.equal(a, b) for a, b in zip(original.parameters(), model.parameters(), strict=True))
    assert list(original.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(reference(model, [piece])[0], reference(original, [piece])[0])

    model.save_pretrained(tmp_path / "folder")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    assert all(torch.equal(a, b) for a, b in zip(original.parameters(), again.parameters(), strict=True))
    save_model(model, str(tmp_path / "plain.safetensors"))
    blank = build()
    with torch.no_grad():
        for parameter in blank.parameters():
            parameter.zero_()
    load_model(blank, tmp_path / "plain.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(original.parameters(), blank.parameters(), strict=True))


def test_weights_are_not_kept_twice() -> None:
    model = qwen2(tie_word_embeddings=True)
    before = sum(p.numel() for p in model.parameters())
    decoder_for(model)
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() // 4 for p in model.parameters()}
    assert sum(storages.values()) == before


def test_changed_weights_are_seen() -> None:
    model = llama()
    (piece,) = prompt(model, 5)
    decoder, cache = decoder_for(model)
    before = decoder.read(cache, piece)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.5)
        model.model.norm.weight.add_(0.25)
        model.model.layers[0].self_attn.q_proj.weight.data = torch.randn(32, 32)
    model.double().float()  # every weight in other storage
    after = decoder.read(decoder.new_cache(), piece)
    torch.testing.assert_close(after, reference(model, [piece])[0], rtol=TOLERANCE, atol=TOLERANCE)
    assert not torch.allclose(before, after, atol=1e-3)


def test_training_goes_on_after_an_answer() -> None:
    model, other = llama(), llama()
    decoder_for(model)
    ids = torch.arange(12)[None]
    for each in (model, other):
        each.train()
        optimizer = torch.optim.AdamW(each.parameters(), lr=1e-2)
        for _ in range(3):
            each(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def _hooked() -> Any:
    model = llama()
    model.model.layers[2].mlp.register_forward_hook(lambda module, args, output: output)
    return model


def _adapted() -> Any:
    class Adapted(nn.Linear):
        pass

    model = llama()
    model.model.layers[0].self_attn.v_proj = Adapted(32, 16, bias=False)
    return model


def _subclass() -> Any:
    class MyLlama(LlamaForCausalLM):
        pass

    return MyLlama(LlamaConfig(**SHAPE)).eval()


UNSUPPORTED = {
    "is not one of": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE)).eval(),
    "MyLlama": _subclass,
    "training": lambda: llama().train(),
    "float32": lambda: llama().to(torch.bfloat16),
    "'dynamic'": lambda: llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
    "'gelu'": lambda: llama(hidden_act="gelu"),
    "model.layers.2.mlp": _hooked,
    "adapted": _adapted,
}


@pytest.mark.parametrize("reason", UNSUPPORTED)
def test_other_models_go_through_their_own_forward(reason: str) -> None:
    model = UNSUPPORTED[reason]()
    assert reason in obstacle(model)
    assert not supports(model)
    tolerance = TOLERANCE if model.dtype == torch.float32 else 0.05
    pieces = [p.to(model.dtype) for p in prompt(model, 6, 1, 3)]
    decoder, cache = decoder_for(model)
    assert isinstance(decoder, ModuleDecoder)
    with torch.inference_mode():
        got = [decoder.read(cache, p) for p in pieces]
    for logits, expected in zip(got, reference(model, pieces), strict=True):
        torch.testing.assert_close(logits, expected.float(), rtol=tolerance, atol=tolerance)


def test_beyond_the_sliding_window_the_conversation_moves_to_transformers() -> None:
    model = mistral(sliding_window=16)
    assert supports(model)
    pieces = prompt(model, 9, 4, 9, 1, 1)
    expected = reference(copy.deepcopy(model), pieces)
    plain = reference(mistral(), pieces)
    cache, total, kinds = None, 0, []
    for piece, logits in zip(pieces, expected, strict=True):
        total += piece.shape[1]
        decoder, cache = decoder_for(model, cache, tokens=total)
        kinds.append(type(decoder))
        with torch.inference_mode():
            torch.testing.assert_close(decoder.read(cache, piece), logits, rtol=TOLERANCE, atol=TOLERANCE)
    assert kinds == [LlamaDecoder] * 2 + [ModuleDecoder] * 3
    assert not torch.allclose(expected[-1], plain[-1], atol=1e-3), "the window did not matter in this test"


@pytest.mark.parametrize("build", [llama, lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE)).eval()])
def test_streaming_equals_greedy_generate_and_continues_from_its_cache(build: Any) -> None:
    model = build()
    table = copy.deepcopy(model).get_input_embeddings()
    first, second = [3, 14, 15, 92, 65], [35, 89, 79]
    state = DecodeState()

    def ask(ids: list[int]) -> list[int]:
        embeds = table(torch.tensor([ids])).detach()
        return list(stream_ids(Wrapper(model), state, embeds, ids, stop_ids=set(), max_new_tokens=6))

    answer = ask(first)
    assert answer == _greedy(model, first, 6)
    assert state.ids == first + answer
    answer_2 = ask(second)
    assert answer_2 == _greedy(model, first + answer + second, 6)
    assert state.ids == first + answer + second + answer_2
    assert state.seconds["prefill"] > 0 and state.seconds["generate"] > 0


def _greedy(model: Any, ids: list[int], count: int) -> list[int]:
    out = model.generate(torch.tensor([ids]), max_new_tokens=count, min_new_tokens=count, do_sample=False)
    return out[0, len(ids) :].tolist()


def test_streaming_stops_and_samples_reproducibly() -> None:
    model = llama()
    ids = [1, 2, 3]
    embeds = model.get_input_embeddings()(torch.tensor([ids])).detach()

    def run(**options: Any) -> list[int]:
        settings = {"stop_ids": set(), "max_new_tokens": 12, **options}
        return list(stream_ids(Wrapper(model), DecodeState(), embeds, ids, **settings))

    greedy = run()
    stop = next(t for t in greedy if t != greedy[0])
    assert run(stop_ids={stop}) == greedy[: greedy.index(stop)]
    hot = Sampling(temperature=5.0, seed=3)
    assert run(sampling=hot) == run(sampling=hot) != greedy
    fresh = run(sampling=Sampling(repetition_penalty=1e6))
    assert len(set(fresh)) == len(fresh)


def test_stop_tokens_are_those_that_the_tokenizer_has() -> None:
    words = {"<unk>": 0, "</s>": 1, "<|im_end|>": 2, "dog": 3}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")), unk_token="<unk>", eos_token="</s>"
    )
    model = llama()
    model.generation_config.eos_token_id = [1, 42]
    assert stop_token_ids(model, tokenizer) == {1, 2, 42}
    model.generation_config.eos_token_id = None
    assert stop_token_ids(model, tokenizer) == {1, 2}
