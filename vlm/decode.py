"""A lean forward pass for Llama-shaped language models on the CPU: one conversation at a time, float32, exact.

Writing one token is bound by reading every weight once from memory, so what counts is how the weights lie there and how
little happens between the reads. `LlamaDecoder` calls no module, writes keys and values into room that was set aside,
computes the last layer for the last token only, reads a long prompt in pieces (what it needs besides the cache does not grow
with the prompt), and turns the wide matrices (gate, up, an untied head) input-major: the same parameters with the same
names, shapes and values, but laid out in memory as ``[in, out]``, so that a product with one vector streams through them
(ours; 1.4 times faster where the BLAS is slow on the usual layout, for tall matrices it is the other way round). Joining
query, key and value into one product gains another 3 % at most, and parameters that share storage cannot be saved by
``save_pretrained``.

No weight is kept twice and nothing is copied that could go stale: the decoder reads the model's live parameters.
``state_dict``, ``save_pretrained``, in-place updates and the model's own forward work as before; the turned parameters
are merely not contiguous, as after any transpose. A model in training mode is left alone.

Shape legend: L new tokens, S tokens in the cache, D width, H query heads, K key-value heads, E width of a head,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu
from transformers import DynamicCache

from vlm.compat import CACHE_NAME
from vlm.errors import ConfigError
from vlm.parallel.kernel import attend

_FAMILIES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "MistralForCausalLM")
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")  # the frequencies do not depend on the length read so far
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
PIECE = 512  # tokens of a long prompt that are read at a time
_PIECE_ON_DEVICE = 4096  # the same where small products waste an accelerator

Embeds = torch.Tensor | Iterable[torch.Tensor]
Projection = tuple[torch.Tensor, torch.Tensor | None]


class Decoder(Protocol):
    """Reads tokens after what a cache holds and says what comes next."""

    def new_cache(self) -> Any:
        """An empty cache for one conversation."""
        ...

    def read(self, cache: Any, embeds_1LD: Embeds) -> torch.Tensor:
        """Append embeddings ``[1, L, D]``, whole or in pieces; logits ``[V]`` after the last of them."""
        ...

    def step(self, cache: Any, token: int) -> torch.Tensor:
        """Append one token; logits ``[V]`` after it."""
        ...


class KVCache:
    """Keys and values, for every layer ``[K, capacity, E]``; more room is made layer by layer, so little is ever held twice."""

    def __init__(self, layers: int, heads: int, width: int, *, capacity: int = 256) -> None:
        self.keys = [torch.empty(heads, capacity, width) for _ in range(layers)]
        self.values = [torch.empty(heads, capacity, width) for _ in range(layers)]
        self.length = 0

    @property
    def capacity(self) -> int:
        """Tokens that fit before more room must be made."""
        return self.keys[0].shape[1]

    def get_seq_length(self) -> int:
        """Tokens it holds; by the name that caches of transformers use."""
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens; negative, as in transformers."""
        self.length += tokens_to_remove

    def reserve(self, extra: int) -> None:
        """Make room for ``extra`` more tokens, and then a quarter more than there was."""
        if self.length + extra > self.capacity:
            capacity = max(self.length + extra, self.capacity + self.capacity // 4)
            for index in range(len(self.keys)):
                self.keys[index] = self._grown(self.keys[index], capacity)
                self.values[index] = self._grown(self.values[index], capacity)

    def put(self, index: int, keys_LKE: torch.Tensor, values_LKE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Place new keys and values of one layer behind the old ones; all of them, ``[1, K, S, E]``.

        ``length`` counts them only when the caller, after the last layer, says so.
        """
        end = self.length + len(keys_LKE)
        self.keys[index][:, self.length : end] = keys_LKE.transpose(0, 1)
        self.values[index][:, self.length : end] = values_LKE.transpose(0, 1)
        return self.keys[index][None, :, :end], self.values[index][None, :, :end]

    def _grown(self, old: torch.Tensor, capacity: int) -> torch.Tensor:
        new = old.new_empty(old.shape[0], capacity, old.shape[2])
        new[:, : self.length] = old[:, : self.length]
        return new

    def to_dynamic(self, config: Any) -> DynamicCache:
        """The same content as a cache of transformers."""
        cache = DynamicCache(config=config)
        for index, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            cache.update(keys[None, :, : self.length].clone(), values[None, :, : self.length].clone(), index)
        return cache


class _Layer(NamedTuple):
    """Parameters of one decoder layer; a projection is (weight ``[out, in]``, bias or None)."""

    input_norm: torch.Tensor
    query: Projection
    key: Projection
    value: Projection
    out: Projection
    mlp_norm: torch.Tensor
    gate: Projection
    up: Projection
    down: Projection

    @classmethod
    def of(cls, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        q, k, v, o = (_projection(getattr(attention, name)) for name in _PROJECTIONS)
        gate, up, down = (_projection(getattr(mlp, name)) for name in _MLP)
        return cls(layer.input_layernorm.weight, q, k, v, o, layer.post_attention_layernorm.weight, gate, up, down)


def _projection(linear: nn.Linear) -> Projection:
    """The live parameters of ``linear``; a weight with more outputs than inputs is input-major from now on."""
    if linear.out_features > linear.in_features and linear.weight.is_contiguous():
        with torch.inference_mode(False), torch.no_grad():
            linear.weight.data = linear.weight.detach().t().contiguous().t()
    return linear.weight, linear.bias


class LlamaDecoder:
    """Prefill and decode steps of one language model for which `obstacle` is empty. Get it from `decoder_for`."""

    def __init__(self, language_model: Any) -> None:
        config, base = language_model.config, language_model.model
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.width = base.layers[0].self_attn.head_dim
        self.eps = config.rms_norm_eps
        self.longest: int | None = getattr(config, "sliding_window", None)
        self.frequencies, self.rope_scale = base.rotary_emb.inv_freq, base.rotary_emb.attention_scaling
        self.layers = [_Layer.of(layer) for layer in _layers(language_model)]
        self.norm, self.table = base.norm.weight, base.embed_tokens.weight
        head = language_model.lm_head
        tied = head.weight is self.table  # rows of the table are looked up, so it stays as it is
        self.head = (head.weight, head.bias) if tied else _projection(head)

    def new_cache(self) -> KVCache:
        """An empty cache for one conversation."""
        return KVCache(len(self.layers), self.kv_heads, self.width)

    def fits(self, tokens: int) -> bool:
        """Whether a conversation of ``tokens`` stays inside the sliding window, where attention is plainly causal."""
        return self.longest is None or tokens <= self.longest

    @torch.inference_mode()
    def step(self, cache: KVCache, token: int) -> torch.Tensor:
        """Append one token; logits ``[V]`` after it."""
        return self.read(cache, self.table[token].view(1, 1, -1))

    @torch.inference_mode()
    def read(self, cache: KVCache, embeds_1LD: Embeds) -> torch.Tensor:
        """Append embeddings ``[1, L, D]``, whole or in pieces; logits ``[V]`` after the last of them.

        If that fails half-way the cache is as it was.
        """
        before = cache.length
        try:
            for piece_1LD, is_last in _pieces(embeds_1LD, PIECE):
                x_LD = self._append(cache, piece_1LD[0], is_last)
        except BaseException:
            cache.length = before
            raise
        return linear(self._norm(x_LD, self.norm), *self.head)[0]

    def _append(self, cache: KVCache, x_LD: torch.Tensor, is_last: bool) -> torch.Tensor:
        """Keys and values of some tokens into the cache; with ``is_last`` the last one's state ``[1, D]``."""
        past, count = cache.length, x_LD.shape[0]
        cache.reserve(count)
        rotation = self._rotation(past, count)
        for index, layer in enumerate(self.layers):
            h_LD = self._norm(x_LD, layer.input_norm)
            keys = self._rotate(linear(h_LD, *layer.key), rotation)
            keys, values = cache.put(index, keys, linear(h_LD, *layer.value).view(count, -1, self.width))
            if layer is self.layers[-1]:  # nothing but the very last token is asked for
                if not is_last:
                    break
                x_LD, h_LD, rotation = x_LD[-1:], h_LD[-1:], rotation[:, -1:]
            queries = self._rotate(linear(h_LD, *layer.query), rotation)
            x_LD = x_LD + linear(self._attend(keys, values, queries, past), *layer.out)
            h_LD = self._norm(x_LD, layer.mlp_norm)
            x_LD = x_LD + linear(silu(linear(h_LD, *layer.gate)).mul_(linear(h_LD, *layer.up)), *layer.down)
        cache.length += count
        return x_LD

    def _norm(self, x_LD: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
        return rms_norm(x_LD, weight_D.shape, weight_D, self.eps)

    def _rotation(self, first: int, count: int) -> torch.Tensor:
        """Cosines and signed sines ``[2, L, 1, E]`` of rotary positions ``first .. first + count``."""
        angles = torch.arange(first, first + count, dtype=torch.float32)[:, None] * self.frequencies
        cos, sin = angles.cos() * self.rope_scale, angles.sin() * self.rope_scale
        return torch.stack([torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)])[:, :, None]

    def _rotate(self, x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        """Split ``x`` into heads ``[L, heads, E]`` and turn each by its position (RoFormer, section 3.2.2)."""
        cos, sin = rotation
        x_LHE = x.view(len(x), -1, self.width)
        return torch.addcmul(x_LHE * cos, x_LHE.roll(self.width // 2, dims=-1), sin)

    def _attend(self, keys: torch.Tensor, values: torch.Tensor, q_LHE: torch.Tensor, past: int) -> torch.Tensor:
        """Attention over everything read, ``[L, H * E]``; ``keys`` and ``values`` are ``[1, K, S, E]``, of which ``past`` came before."""
        count = len(q_LHE)
        if count == 1:  # the query heads of one group are so many queries over the same keys, and see all of them
            grouped = q_LHE.view(1, self.kv_heads, -1, self.width)
            return scaled_dot_product_attention(grouped, keys, values).view(1, -1)
        if past == 0:
            queries, grouped_heads = q_LHE.transpose(0, 1)[None], self.heads != self.kv_heads
            mixed = scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=grouped_heads)
            return mixed[0].transpose(0, 1).reshape(count, -1)
        # All earlier tokens, and causally the new ones: joined by log-sum-exp, without a mask.
        (old_k, old_v), (new_k, new_v) = (
            [x[0, :, part].transpose(0, 1) for x in (keys, values)] for part in (slice(past), slice(past, None))
        )
        old, old_lse = attend(q_LHE, old_k, old_v, causal=False, scale=self.width**-0.5)
        new, new_lse = attend(q_LHE, new_k, new_v, causal=True, scale=self.width**-0.5)
        return new.lerp(old, (old_lse - new_lse).sigmoid()[..., None]).reshape(count, -1)


@dataclass(frozen=True)
class ModuleDecoder:
    """The same through the model's own forward: for every model and device that `LlamaDecoder` does not know."""

    language_model: Any

    def new_cache(self) -> DynamicCache:
        """An empty cache for one conversation."""
        return DynamicCache(config=self.language_model.config)

    def read(self, cache: DynamicCache, embeds_1LD: Embeds) -> torch.Tensor:
        """Append embeddings ``[1, L, D]``, whole or in pieces; logits ``[V]`` after the last of them."""
        size = PIECE if self.language_model.device.type == "cpu" else _PIECE_ON_DEVICE
        for piece_1LD, _ in _pieces(embeds_1LD, size):
            logits = self._forward(cache, inputs_embeds=piece_1LD)
        return logits

    def step(self, cache: DynamicCache, token: int) -> torch.Tensor:
        """Append one token; logits ``[V]`` after it."""
        return self._forward(cache, input_ids=torch.tensor([[token]], device=self.language_model.device))

    def _forward(self, cache: DynamicCache, **inputs: torch.Tensor) -> torch.Tensor:
        outputs = self.language_model(**inputs, **{CACHE_NAME: cache}, use_cache=True, logits_to_keep=1)
        return outputs.logits[0, -1].float()


def _pieces(embeds_1LD: Embeds, size: int) -> Iterator[tuple[torch.Tensor, bool]]:
    """Pieces of at most ``size`` tokens, and whether each is the last."""
    waiting = None
    for part in (embeds_1LD,) if isinstance(embeds_1LD, torch.Tensor) else embeds_1LD:
        for piece in part.split(size, dim=1):
            if waiting is not None:
                yield waiting, False
            waiting = piece
    if waiting is None or waiting.shape[1] == 0:
        raise ConfigError("nothing to read: the prompt has no token")
    yield waiting, True


def supports(language_model: Any) -> bool:
    """Whether `LlamaDecoder` computes what ``language_model`` computes."""
    return not obstacle(language_model)


def obstacle(language_model: Any) -> str:
    """Why `LlamaDecoder` cannot take ``language_model``, or an empty string."""
    kind = type(language_model)
    if kind.__name__ not in _FAMILIES or not kind.__module__.startswith("transformers."):
        return f"{kind.__name__} is not one of {', '.join(_FAMILIES)}"
    if language_model.training:
        return "the model is in training mode"
    return _config_obstacle(language_model) or _module_obstacle(language_model) or _layer_obstacle(language_model)


def _config_obstacle(language_model: Any) -> str:
    config, rotary = language_model.config, language_model.model.rotary_emb
    if rotary.rope_type not in _STATIC_ROPE:
        return f"rotary embedding of type {rotary.rope_type!r} changes with the length"
    if config.hidden_act != "silu":
        return f"activation {config.hidden_act!r} is not 'silu'"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"attention implementation {config._attn_implementation!r} is asked for"
    return ""


def _module_obstacle(language_model: Any) -> str:
    for name, module in language_model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return f"the forward of {name or 'the model'} is hooked"
        for p in module._parameters.values():
            if p is not None and (type(p) is not nn.Parameter or p.device.type != "cpu" or p.dtype != torch.float32):
                return f"a weight of {name} is not a plain float32 tensor on the CPU ({p.dtype}, {p.device})"
    return ""


def _layer_obstacle(language_model: Any) -> str:
    width = language_model.model.rotary_emb.inv_freq.numel() * 2
    config = language_model.config
    for index, layer in enumerate(_layers(language_model)):
        attention, mlp = layer.self_attn, layer.mlp
        linears = [getattr(attention, n) for n in _PROJECTIONS] + [getattr(mlp, n) for n in _MLP]
        if any(type(x) is not nn.Linear for x in [*linears, language_model.lm_head]):
            return f"layer {index} has adapted or quantised projections"
        rows = [x.out_features for x in linears[:3]]
        if rows != [n * width for n in (config.num_attention_heads, *2 * (config.num_key_value_heads,))]:
            return f"layer {index} has projections of {rows} rows, which heads of width {width} do not explain"
    return ""


def _layers(language_model: Any) -> list[Any]:
    return list(language_model.model.layers[: language_model.config.num_hidden_layers])


def decoder_for(language_model: Any, cache: Any = None, *, tokens: int = 0) -> tuple[Decoder, Any]:
    """The best decoder for a model, and the cache to use with it: ``cache``, converted if need be, or a new one.

    Args:
        language_model: A causal language model of transformers.
        cache: What the conversation has read so far, from an earlier call.
        tokens: How long the conversation may become before the next call.
    """
    if (cache is None or isinstance(cache, KVCache)) and supports(language_model):
        decoder = LlamaDecoder(language_model)
        if decoder.fits(tokens):
            cache = cache or decoder.new_cache()
            cache.reserve(tokens - cache.length)
            return decoder, cache
    fallback = ModuleDecoder(language_model)
    if isinstance(cache, KVCache):
        return fallback, cache.to_dynamic(language_model.config)
    return fallback, cache if cache is not None else fallback.new_cache()
