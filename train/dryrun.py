"""What a recipe would train and need, said without training: parameters, tokens, memory. Weights stay untouched where
possible.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from train.build import build_dataset, build_model
from train.data import Encode, MicroBatches, Order, pad_and_stack
from train.prepare import freeze, freeze_report, learning_rates
from train.stages import Recipe, Stage
from vlm.errors import ConfigError, DataError
from vlm.loss import CHUNK
from vlm.plugins import build_plugin

SAMPLES = 4


def describe(recipe: Recipe) -> str:
    """A report for people: per stage the modules with their trainable parameters, tokens per step, and memory per
    process.

    Raises:
        ConfigError: A pattern, a callable or an option of the recipe is wrong.
    """
    model, processor, where = _build(recipe)
    total = sum(p.numel() for p in model.parameters())
    lines = [
        f"model {recipe.model.call}: {type(model).__name__}, {total:,} parameters ({where})",
        f"out   {recipe.out}",
    ]
    for stage in recipe.stages:
        plugins = [build_plugin(p.call, p.args) for p in stage.all_plugins]
        for plugin in plugins:
            model = plugin.prepare(model)
        rates = learning_rates(model, stage)
        freeze(model, rates)
        lines += ["", *_tokens(stage, recipe, processor), *(f"  {line}" for line in freeze_report(model, rates))]
        lines += _memory(model, stage)
        for plugin in plugins:
            model = plugin.finish(model)
        if stage.name == recipe.until:
            break
    return "\n".join(lines)


def _build(recipe: Recipe) -> tuple[nn.Module, Any, str]:
    """On the meta device if the builder allows it."""
    try:
        with torch.device("meta"):
            return *build_model(recipe), "weights not read"
    except ConfigError:
        raise
    except Exception:  # whatever a builder does that meta tensors cannot
        return *build_model(recipe), "weights read"


def _tokens(stage: Stage, recipe: Recipe, processor: Any) -> list[str]:
    """Samples and tokens per step: the bound, and what the first samples really have."""
    bound = stage.batch_size * stage.seq_len
    lines = [
        f"stage {stage.name}: {stage.steps:,} steps of {stage.batch_size} samples, "
        f"at most {stage.seq_len:,} tokens each: up to {bound:,} tokens per step, {bound * stage.steps:,} in all"
    ]
    try:
        dataset = build_dataset(stage, seed=recipe.seed, processor=processor)
    except DataError as error:  # a cluster's data are seldom where a recipe is written
        return [*lines, f"  data {stage.data.call}: not here ({error})"]
    encode = None if processor is None else Encode(processor, stage.frames)
    reader = MicroBatches(
        dataset, Order(len(dataset), (recipe.seed,)), pad_and_stack, 1, encode=encode, max_length=stage.seq_len
    )
    examples = [reader.example(i) for i in range(min(SAMPLES, len(dataset)))]
    mean = sum(len(e["input_ids"]) for e in examples) / len(examples)
    targets = sum(int((e["labels"][1:] != -100).sum()) for e in examples) / len(examples)
    epochs = stage.steps * stage.batch_size / len(dataset)
    return [
        *lines,
        f"  data {stage.data.call}: {len(dataset):,} samples, {epochs:.2f} epochs; the first {len(examples)} have "
        f"{mean:.0f} tokens and {targets:.0f} targets on average: about {mean * stage.batch_size:,.0f} tokens per step",
    ]


def _memory(model: nn.Module, stage: Stage) -> list[str]:
    """Estimate for one process of ``WORLD_SIZE``: fp32 weights, AdamW."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    world = max(int(os.environ.get("WORLD_SIZE", "1")), stage.parallel.sp_size)
    spread, of = (world, f" / {world} processes") if stage.parallel.shard and world > 1 else (1, "")
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    rows: dict[str, tuple[float, str]] = {
        "weights": (weights / spread, f"parameters x their bytes{of}"),
        "gradients": (4 * trainable / spread, f"4 x trainable{of}"),
        "optimizer": (8 * trainable / spread, f"8 x trainable (two fp32 moments of AdamW){of}"),
    }
    groups = world // stage.parallel.sp_size
    tokens = max(stage.batch_size // (stage.grad_accum * groups), 1) * stage.seq_len // stage.parallel.sp_size
    values = activation_values(model, recompute=stage.gradient_checkpointing)
    if values is not None:
        per_layer, logits = values
        width = 2 if stage.dtype == "bf16" else 4
        layers = "(layers x h + one layer)" if stage.gradient_checkpointing else "layers x (8 h + 2 kv + 4 f)"
        rows["activations"] = (tokens * per_layer * width, f"{tokens:,} tokens x {width} x {layers}")
        scored = min(tokens, CHUNK) if hasattr(model, "language_model") else tokens
        rows["logits"] = (scored * logits * 4, f"{scored:,} tokens x 12 x vocabulary")
    total = sum(size for size, _ in rows.values())
    lines = [f"  memory   {name:<12} {size / 2**20:>10,.1f} MiB   {how}" for name, (size, how) in rows.items()]
    note = "" if values else "   without activations: the model has no text config to estimate them from"
    return [*lines, f"  memory   {'total':<12} {total / 2**20:>10,.1f} MiB{note}"]


def activation_values(model: nn.Module, *, recompute: bool = False) -> tuple[float, float] | None:
    """Numbers kept per token for the backward pass: (in the language model's layers, at the output), or None without a
    config.

    A pre-norm layer with hidden size h, key/value width kv and feed-forward width f keeps, with attention that keeps no
    score matrix: two norms of 3 h each (input, normalised, output), queries and attention output 2 h, keys and values
    2 kv, and 4 f of a gated feed-forward. The output keeps logits, log-probabilities and their gradient. (Ours; within
    10 % of what a Llama of transformers saves.) Too high where little is kept: frozen layers below every trained one
    keep nothing. Vision and audio towers are not counted.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        return None
    text = config.get_text_config()
    try:
        h, layers, f, vocab = text.hidden_size, text.num_hidden_layers, text.intermediate_size, text.vocab_size
    except AttributeError:
        return None
    heads = getattr(text, "num_attention_heads", 1)
    kv = h * getattr(text, "num_key_value_heads", heads) // heads
    layer = 8 * h + 2 * kv + 4 * f
    return (layers * h + layer if recompute else layers * layer), 3 * vocab
