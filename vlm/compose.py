"""`compose`: a new video-language model from a language model and a vision tower of the hub (or of folders), joined by a fresh connector.

This is where a curriculum starts: both halves as they were trained, and nothing between them yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlm.chat import Assistant
from vlm.config import VisionConfig, VLMConfig
from vlm.errors import CheckpointError
from vlm.model import VLMForConditionalGeneration
from vlm.processor import VLMProcessor
from vlm.time.rows import smooth_rows

_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def compose(
    llm: str | Path,
    vision: str | Path,
    *,
    connector: dict[str, Any] | None = None,
    pooling: dict[str, Any] | None = None,
    time: dict[str, Any] | None = None,
    select_layer: int = -2,
    dtype: torch.dtype = torch.float32,
) -> Assistant:
    """Load both halves and join them.

    Args:
        llm: A causal language model with its tokenizer: folder or hub id.
        vision: A vision model of transformers, or one with such a half (SigLIP, CLIP, DINOv2, ...): folder or hub id.
        connector: See `VLMConfig`; default ``{"type": "mlp_downsample"}``, as LongVILA has it.
        pooling: See `VLMConfig`; default: every token of every frame.
        time: See `VLMConfig`; default: 100 time tokens.
        select_layer: Hidden state of the tower that the connector reads.
        dtype: Of all weights.

    Raises:
        CheckpointError: One of the two cannot be read, or is of another kind.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tower = _read("vision model", vision, lambda: _tower_config(vision))
    tokenizer = _read("tokenizer", llm, lambda: AutoTokenizer.from_pretrained(llm))
    language_model = _read("language model", llm, lambda: AutoModelForCausalLM.from_pretrained(llm, dtype=dtype))
    config = joined(
        language_model.config,
        _vision_config(vision, tower, select_layer),
        connector=connector,
        pooling=pooling,
        time=time,
    )
    model = VLMForConditionalGeneration(config).to(dtype)
    model.language_model = language_model
    _load_tower(model.vision_tower.model, vision)
    known = len(tokenizer)
    processor = VLMProcessor.for_config(config, tokenizer, model.token_grid)
    make_room(model, len(processor.tokenizer))
    start_times(model, [i for i in config.time_token_ids or [] if i >= known])
    return Assistant(model.eval(), processor, name=f"{Path(llm).name} + {Path(vision).name}")


def joined(
    text_config: Any,
    vision_config: VisionConfig,
    *,
    connector: dict[str, Any] | None = None,
    pooling: dict[str, Any] | None = None,
    time: dict[str, Any] | None = None,
) -> VLMConfig:
    """The config of a composed model."""
    return VLMConfig(
        text_config=text_config,
        vision_config=vision_config,
        connector=connector or {"type": "mlp_downsample"},
        pooling=pooling or {"mode": "frame"},
        time=time or {"codec": "relative", "num_tokens": 100, "interleave": False},
    )


def make_room(model: VLMForConditionalGeneration, vocabulary: int) -> None:
    """At least ``vocabulary`` rows in the table of embeddings and the head; new rows start as the mean of the old ones."""
    table = model.get_input_embeddings().weight
    if vocabulary <= len(table):  # many models have spare rows
        return
    before = len(table)
    model.language_model.resize_token_embeddings(vocabulary, mean_resizing=False)
    model.config.text_config.vocab_size = vocabulary
    with torch.no_grad():
        for part in (model.get_input_embeddings(), model.get_output_embeddings()):
            part.weight[before:] = part.weight[:before].mean(0)


def start_times(model: VLMForConditionalGeneration, ids: list[int]) -> None:
    """Let the rows of new time tokens start on a smooth curve (`vlm.time.rows`), in the table of embeddings and in a head of its own."""
    if not ids:
        return
    parts = [model.get_input_embeddings(), model.get_output_embeddings()]
    with torch.no_grad():
        for weight in {id(part.weight): part.weight for part in parts}.values():
            weight[ids] = smooth_rows(len(ids), weight[: min(ids)])


def _tower_config(vision: str | Path) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(vision)
    tower = getattr(config, "vision_config", config)
    if not hasattr(tower, "image_size"):
        raise ValueError(f"{tower.model_type} looks at no pictures")
    return tower


def _vision_config(vision: str | Path, tower: Any, select_layer: int) -> VisionConfig:
    """Pixels as the model's own image processor prepares them, if it has one."""
    from transformers import AutoImageProcessor

    mean, std = _HALF
    try:
        prepares = AutoImageProcessor.from_pretrained(vision)
        mean, std = tuple(prepares.image_mean), tuple(prepares.image_std)
    except (AttributeError, ImportError, OSError, ValueError):  # none there
        pass
    return VisionConfig(
        name=tower.model_type,
        image_size=int(tower.image_size),
        image_mean=list(mean),
        image_std=list(std),
        tower={k: v for k, v in tower.to_diff_dict().items() if k not in ("model_type", "image_size", "dtype")},
        select_layer=select_layer,
    )


def _load_tower(own: nn.Module, vision: str | Path) -> None:
    """The weights of the visual half; every one of them must be there."""

    def load() -> Any:
        from transformers.utils import logging

        before = logging.get_verbosity()
        logging.set_verbosity_error()  # the weights of the other half are no news
        try:
            return type(own).from_pretrained(vision, config=own.config, output_loading_info=True)  # type: ignore[attr-defined]
        finally:
            logging.set_verbosity(before)

    loaded, info = _read("vision model", vision, load)
    if info["missing_keys"] or info["mismatched_keys"]:
        lacking = sorted(str(k) for k in [*info["missing_keys"], *info["mismatched_keys"]])
        raise CheckpointError(f"{vision} lacks {len(lacking)} weights of a {type(own).__name__}, first {lacking[0]!r}")
    own.load_state_dict(loaded.state_dict())


def _read(what: str, source: str | Path, read: Any) -> Any:
    try:
        return read()
    except Exception as error:  # of any type: the readers of damaged files raise what they like
        raise CheckpointError(f"cannot read the {what} {str(source)!r}: {str(error).splitlines()[0]}") from error
