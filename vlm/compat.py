"""What differs between the releases of transformers that this package accepts. The one place that knows."""

from __future__ import annotations

from dataclasses import fields

from transformers.modeling_outputs import CausalLMOutputWithPast

# What a causal language model calls its key-value cache, as argument and in its output: ``past_key_values`` up to
# transformers 5.23, ``cache`` from 5.24 (which warns about the older name, and will refuse it).
CACHE_NAMES = ("cache", "past_key_values")
CACHE_NAME = next(name for name in CACHE_NAMES if name in {field.name for field in fields(CausalLMOutputWithPast)})
