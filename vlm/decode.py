"""A lean forward pass for Llama-shaped language models on the CPU: one conversation at a time, float32, exact.

Writing one token is bound by reading every weight once from memory, so what counts is how the weights lie there and how
little happens between the reads. `FusedDecoder` joins the query, key and value weights of a layer into one matrix and
gate and up into another, stores all matrices input-major ``[in, out]`` (a product with one vector then streams through
memory; ours), writes keys and values into room that was set aside, and calls no module.

No weight is kept twice: the model's own parameters become views of the joined storage, with the same names, shapes and
values. ``state_dict``, ``save_pretrained``, in-place updates and the model's own forward work as before; the parameters
are no longer contiguous, as after any transpose. Moving the model gives it storage of its own again, and the next
`decoder_for` joins anew. A model in training mode is left alone.

Shape legend: L new tokens, S tokens in the cache, D width, H query heads, K key-value heads, E width of a head,
V vocabulary.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu
from transformers import DynamicCache

_FAMILIES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "MistralForCausalLM")
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")  # the frequencies do not depend on the length read so far
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_DECODERS: WeakKeyDictionary[nn.Module, FusedDecoder] = WeakKeyDictionary()
_LOCK = threading.Lock()


class Decoder(Protocol):
    """Reads tokens after what a cache holds and says what comes next."""

    def new_cache(self) -> Any:
        """An empty cache for one conversation."""
        ...

    def read(self, cache: Any, embeds_1LD: torch.Tensor) -> torch.Tensor:
        """Append embeddings ``[1, L, D]``; logits ``[V]`` after the last of them."""
        ...

    def step(self, cache: Any, token: int) -> torch.Tensor:
        """Append one token; logits ``[V]`` after it."""
        ...


class KVCache:
    """Keys and values of all layers, ``[layers, K, capacity, E]``; the room doubles when it runs out."""

    def __init__(self, layers: int, heads: int, width: int, *, capacity: int = 256) -> None:
        self.keys = torch.empty(layers, heads, capacity, width)
        self.values = torch.empty(layers, heads, capacity, width)
        self.length = 0

    @property
    def capacity(self) -> int:
        """Tokens that fit before the room must grow."""
        return self.keys.shape[2]

    def reserve(self, extra: int) -> None:
        """Make room for ``extra`` more tokens."""
        if self.length + extra > self.capacity:
            capacity = max(self.length + extra, 2 * self.capacity)
            self.keys, self.values = self._grown(self.keys, capacity), self._grown(self.values, capacity)

    def _grown(self, old: torch.Tensor, capacity: int) -> torch.Tensor:
        new = old.new_empty(*old.shape[:2], capacity, old.shape[3])
        new[:, :, : self.length] = old[:, :, : self.length]
        return new

    def to_dynamic(self, config: Any) -> DynamicCache:
        """The same content as a cache of transformers."""
        cache = DynamicCache(config=config)
        for index, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            cache.update(keys[None, :, : self.length].clone(), values[None, :, : self.length].clone(), index)
        return cache


@dataclass(frozen=True)
class _Linear:
    """``x @ weight + bias`` with ``weight [in, out]``, the joined storage of one or several `nn.Linear`."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    @classmethod
    def adopt(cls, *linears: nn.Linear) -> _Linear:
        """Join ``linears`` along their outputs and make their parameters views of the joined storage."""
        weight = torch.cat([x.weight.detach().t() for x in linears], dim=1).contiguous()
        biases = [x.bias.detach() for x in linears if x.bias is not None]
        bias = torch.cat(biases) if biases else None
        sizes = [x.out_features for x in linears]
        for linear, part in zip(linears, weight.split(sizes, dim=1), strict=True):
            linear.weight.data = part.t()
        if bias is not None:
            for linear, piece in zip(linears, bias.split(sizes), strict=True):
                linear.bias.data = piece
        return cls(weight, bias)

    def __call__(self, x_LD: torch.Tensor) -> torch.Tensor:
        return torch.mm(x_LD, self.weight) if self.bias is None else torch.addmm(self.bias, x_LD, self.weight)


@dataclass(frozen=True)
class _Layer:
    """The weights of one decoder layer."""

    input_norm: torch.Tensor
    qkv: _Linear
    out: _Linear
    mlp_norm: torch.Tensor
    gate_up: _Linear
    down: _Linear

    @classmethod
    def adopt(cls, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        return cls(
            input_norm=layer.input_layernorm.weight,
            qkv=_Linear.adopt(attention.q_proj, attention.k_proj, attention.v_proj),
            out=_Linear.adopt(attention.o_proj),
            mlp_norm=layer.post_attention_layernorm.weight,
            gate_up=_Linear.adopt(mlp.gate_proj, mlp.up_proj),
            down=_Linear.adopt(mlp.down_proj),
        )


class FusedDecoder:
    """Prefill and decode steps of one language model for which `obstacle` is empty. Get it from `decoder_for`."""

    def __init__(self, language_model: Any) -> None:
        config, base = language_model.config, language_model.model
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.width = base.layers[0].self_attn.head_dim
        self.eps = config.rms_norm_eps
        self.longest: int | None = getattr(config, "sliding_window", None)
        self.frequencies, self.rope_scale = base.rotary_emb.inv_freq, base.rotary_emb.attention_scaling
        with torch.inference_mode(False), torch.no_grad():
            self.layers = [_Layer.adopt(layer) for layer in _layers(language_model)]
            self.head = _Linear.adopt(language_model.lm_head)
        self.norm = base.norm.weight
        self.table = base.embed_tokens.weight
        self.pointers = _pointers(language_model)

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
    def read(self, cache: KVCache, embeds_1LD: torch.Tensor) -> torch.Tensor:
        """Append embeddings ``[1, L, D]``; logits ``[V]`` after the last of them."""
        x_LD = embeds_1LD[0]
        first, count = cache.length, x_LD.shape[0]
        cache.reserve(count)
        rotation = self._rotation(first, count)
        mask = None if first == 0 or count == 1 else torch.ones(count, first + count, dtype=torch.bool).tril(first)
        for index, layer in enumerate(self.layers):
            h_LD = self._norm(x_LD, layer.input_norm)
            q_LHE = self._store(cache, index, layer.qkv(h_LD), rotation)
            x_LD = x_LD + layer.out(self._attend(cache, index, q_LHE, mask))
            gate, up = layer.gate_up(self._norm(x_LD, layer.mlp_norm)).chunk(2, dim=-1)
            x_LD = x_LD + layer.down(silu(gate).mul_(up))
        cache.length += count
        return self.head(self._norm(x_LD[-1:], self.norm))[0]

    def _norm(self, x_LD: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
        return rms_norm(x_LD, weight_D.shape, weight_D, self.eps)

    def _rotation(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines ``[L, 1, E]`` of rotary positions ``first .. first + count``."""
        angles = torch.arange(first, first + count, dtype=torch.float32)[:, None] * self.frequencies
        cos, sin = angles.cos() * self.rope_scale, angles.sin() * self.rope_scale
        return torch.cat([cos, cos], dim=-1)[:, None], torch.cat([-sin, sin], dim=-1)[:, None]

    def _store(
        self, cache: KVCache, index: int, qkv: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Rotate queries and keys, put keys and values into the cache, return the queries ``[L, H, E]``."""
        cos, sin = rotation
        turned, values = qkv.view(len(qkv), -1, self.width).split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        turned = torch.addcmul(turned * cos, turned.roll(self.width // 2, dims=-1), sin)
        where = slice(cache.length, cache.length + len(qkv))
        cache.keys[index, :, where] = turned[:, self.heads :].transpose(0, 1)
        cache.values[index, :, where] = values.transpose(0, 1)
        return turned[:, : self.heads]

    def _attend(self, cache: KVCache, index: int, q_LHE: torch.Tensor, mask_LS: torch.Tensor | None) -> torch.Tensor:
        """Attention over everything read, ``[L, H * E]``."""
        count, end = len(q_LHE), cache.length + len(q_LHE)
        keys, values = cache.keys[index : index + 1, :, :end], cache.values[index : index + 1, :, :end]
        if count == 1:  # the query heads of one group are so many queries over the same keys, and see all of them
            grouped = q_LHE.view(1, self.kv_heads, -1, self.width)
            return scaled_dot_product_attention(grouped, keys, values).view(1, -1)
        queries = q_LHE.transpose(0, 1)[None]
        grouped = scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask_LS, is_causal=mask_LS is None, enable_gqa=self.heads != self.kv_heads
        )
        return grouped[0].transpose(0, 1).reshape(count, -1)


@dataclass(frozen=True)
class ModuleDecoder:
    """The same through the model's own forward: for every model and device that `FusedDecoder` does not know."""

    language_model: Any

    def new_cache(self) -> DynamicCache:
        """An empty cache for one conversation."""
        return DynamicCache(config=self.language_model.config)

    def read(self, cache: DynamicCache, embeds_1LD: torch.Tensor) -> torch.Tensor:
        """Append embeddings ``[1, L, D]``; logits ``[V]`` after the last of them."""
        return self._forward(cache, inputs_embeds=embeds_1LD)

    def step(self, cache: DynamicCache, token: int) -> torch.Tensor:
        """Append one token; logits ``[V]`` after it."""
        return self._forward(cache, input_ids=torch.tensor([[token]], device=self.language_model.device))

    def _forward(self, cache: DynamicCache, **inputs: torch.Tensor) -> torch.Tensor:
        outputs = self.language_model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return outputs.logits[0, -1].float()


def supports(language_model: Any) -> bool:
    """Whether `FusedDecoder` computes what ``language_model`` computes."""
    return not obstacle(language_model)


def obstacle(language_model: Any) -> str:
    """Why `FusedDecoder` cannot take ``language_model``, or an empty string."""
    kind = type(language_model)
    if kind.__name__ not in _FAMILIES or not kind.__module__.startswith("transformers."):
        return f"{kind.__name__} is not one of {', '.join(_FAMILIES)}"
    if language_model.training:
        return "the model is in training mode"
    strange = {(p.device.type, p.dtype) for p in language_model.parameters()} - {("cpu", torch.float32)}
    if strange or any(type(p) is not nn.Parameter for p in language_model.parameters()):
        return f"not all weights are plain float32 tensors on the CPU: {sorted(map(str, strange))}"
    return _config_obstacle(language_model) or _module_obstacle(language_model)


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
        if len({x.bias is None for x in linears[:3]}) > 1 or len({x.bias is None for x in linears[4:6]}) > 1:
            return f"layer {index} has biases on some projections only"
    return ""


def _layers(language_model: Any) -> list[Any]:
    return list(language_model.model.layers[: language_model.config.num_hidden_layers])


def _pointers(language_model: Any) -> list[int]:
    return [p.data_ptr() for p in language_model.parameters()]


def decoder_for(language_model: Any, cache: Any = None, *, tokens: int = 0) -> tuple[Decoder, Any]:
    """The best decoder for a model, and the cache to use with it: ``cache``, converted if need be, or a new one.

    Args:
        language_model: A causal language model of transformers.
        cache: What the conversation has read so far, from an earlier call.
        tokens: How long the conversation may become before the next call.
    """
    if (cache is None or isinstance(cache, KVCache)) and supports(language_model):
        decoder = _fused(language_model)
        if decoder.fits(tokens):
            return decoder, cache or decoder.new_cache()
    fallback = ModuleDecoder(language_model)
    if isinstance(cache, KVCache):
        return fallback, cache.to_dynamic(language_model.config)
    return fallback, cache if cache is not None else fallback.new_cache()


def _fused(language_model: Any) -> FusedDecoder:
    """The decoder of a model, made on first use and again when the model's weights have moved."""
    with _LOCK:
        decoder = _DECODERS.get(language_model)
        if decoder is None or decoder.pointers != _pointers(language_model):
            decoder = _DECODERS[language_model] = FusedDecoder(language_model)
        return decoder
