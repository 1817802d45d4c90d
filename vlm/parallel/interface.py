"""The door to transformers: the text tower's attention is ours while a sequence is shared, and nothing else changes.

Registered through `AttentionInterface` and `AttentionMaskInterface`; the tower gets the attention of the step (`ParallelAttention`, or a
`ShardedCache` for a new token) as the keyword ``shared``.
What could not be computed exactly is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vlm.errors import ConfigError

NAME = "vlm_sp_sdpa"


def use_shared_attention(language_model: Any) -> None:
    """Let a causal LM of transformers attend through what it is given as ``shared``; its own attention is no longer used.

    Raises:
        ConfigError: The model's attention is not plain causal attention.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    check_plain(language_model.config)
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask)
    language_model.set_attn_implementation(NAME)


def check_plain(config: Any) -> None:
    """Refuse what is not causal attention to all earlier tokens.

    Raises:
        ConfigError: Names the setting.
    """
    other = sorted({kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"})
    if other:
        raise ConfigError(f"layer_types has {other}: sequence parallelism computes full causal attention only")
    for name in ("attn_logit_softcapping", "attention_chunk_size", "alibi", "position_embedding_type"):
        if getattr(config, name, None):
            raise ConfigError(f"{name}={getattr(config, name)!r} is not plain causal attention")
    if getattr(config, "sliding_window", None) and getattr(config, "layer_types", None) is None:
        raise ConfigError(f"sliding_window={config.sliding_window} is not plain causal attention")
    if getattr(config, "attention_dropout", 0.0):
        raise ConfigError(
            f"attention_dropout={config.attention_dropout}: processes would drop different pairs; set it to 0"
        )


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    shared: Callable[..., torch.Tensor] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """q ``[1, H, N, d]``, k and v ``[1, K, N, d]`` -> ``[1, N, H, d]``."""
    if shared is None:
        raise ConfigError("this model's attention is shared between processes; call it through vlm.parallel")
    if query.shape[0] != 1 or key.shape[2] != query.shape[2] or not getattr(module, "is_causal", True):
        raise ConfigError(f"one packed sequence without a cache is expected, got queries {tuple(query.shape)}")
    for name in ("sliding_window", "softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise ConfigError(
                f"layer {getattr(module, 'layer_idx', '?')}: {name}={kwargs[name]!r} is not plain causal attention"
            )
    q_NHd, k_NKd, v_NKd = (x[0].transpose(0, 1) for x in (query, key, value))
    return shared(q_NHd, k_NKd, v_NKd, scale=scaling, layer=module.layer_idx)[None], None


def _mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> None:
    """No mask: the layout says what attends to what. Padding has no place in a packed sequence."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ConfigError("attention_mask has padding; sequence parallelism packs the real tokens instead")
