"""The sizes of a model that its cost depends on: written out for models by name, read from a config for any other. No weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from vlm.errors import ConfigError
from vlm.parallel.plan import AttentionShape


@dataclass(frozen=True)
class Text:
    """A language model of pre-norm layers with grouped queries and a gated feed-forward.

    Attributes:
        hidden: Width h.
        layers: Number of layers.
        heads: Query heads H.
        kv_heads: Key heads K.
        head_width: d.
        feed_forward: Width f.
        vocabulary: V.
        parameters: All of them, a table that is also the head once.
        tied: The head is the table of embeddings.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    feed_forward: int
    vocabulary: int
    parameters: int
    tied: bool

    @property
    def multiplied(self) -> int:
        """Parameters that every token is multiplied with: all but a table of embeddings that is only looked up."""
        return self.parameters - (0 if self.tied else self.vocabulary * self.hidden)

    @property
    def kept(self) -> int:
        """Numbers that a layer keeps per token for its backward pass: two norms (input, normalised, output), queries and attention output,
        keys and values, and 4 f of a gated feed-forward, without a score matrix (ours; within 10 % of what transformers saves)."""
        return 6 * self.hidden + 2 * self.heads * self.head_width + self.kv_numbers + 4 * self.feed_forward

    @property
    def kv_numbers(self) -> int:
        """Numbers of keys and values of one token in one layer."""
        return 2 * self.kv_heads * self.head_width

    @property
    def attention(self) -> AttentionShape:
        """For the plan: bf16 on the way, fp32 key gradients."""
        return AttentionShape(self.heads, self.kv_heads, self.head_width)


@dataclass(frozen=True)
class Eyes:
    """A vision tower with its connector.

    Attributes:
        parameters: Of both.
        image_size: Side of a frame, pixels.
        grid: (rows, columns) of the tokens of a frame, as they leave the connector.
        flops: Of one frame forward, both.
        layers: Layers of the tower; 1 if it is not made of equal layers.
        kept: Numbers kept of one frame for the backward pass.
        kept_inputs: Of those, the inputs of the layers, which is what stays with gradient checkpointing.
    """

    parameters: int
    image_size: int
    grid: tuple[int, int]
    flops: float
    layers: int
    kept: int
    kept_inputs: int


NO_EYES = Eyes(0, 0, (0, 0), 0.0, 1, 0, 0)


@dataclass(frozen=True)
class Shapes:
    """A model.

    Attributes:
        name: How it was asked for.
        text: The language model.
        eyes: The vision tower; `NO_EYES` for text alone.
        pooling: `VLMConfig.pooling` of a model that pools frames, else None.
    """

    name: str
    text: Text
    eyes: Eyes = NO_EYES
    pooling: Any = None

    @property
    def parameters(self) -> int:
        """Of all parts."""
        return self.text.parameters + self.eyes.parameters

    def tokens(self, frames: int, per_frame: int | None = None) -> int:
        """Tokens of a video.

        Args:
            frames: Number of frames.
            per_frame: Tokens of each, instead of what the model's connector and pooling make.
        """
        if per_frame is not None:
            return frames * per_frame
        if self.pooling is None:
            return frames * self.eyes.grid[0] * self.eyes.grid[1]
        from vlm.time.slowfast import pooler_of

        shots = min(8, frames)  # as `vlm info` counts them
        segments = [frames * (i + 1) // shots - frames * i // shots for i in range(shots)]
        return pooler_of(self.pooling).count(frames, self.eyes.grid, segments)


def _gated(
    hidden: int, layers: int, heads: int, kv: int, feed_forward: int, vocabulary: int, *, tied: bool, bias: bool
) -> Text:
    """A Llama-shaped model; ``bias`` is that of queries, keys and values (Qwen2)."""
    width = hidden // heads
    per_layer = 2 * hidden * hidden + 2 * hidden * kv * width + 3 * hidden * feed_forward + 2 * hidden
    per_layer += (hidden + 2 * kv * width) if bias else 0
    total = (1 if tied else 2) * vocabulary * hidden + layers * per_layer + hidden
    return Text(hidden, layers, heads, kv, width, feed_forward, vocabulary, total, tied)


TEXTS = {
    "qwen2-1.5b": _gated(1536, 28, 12, 2, 8960, 151936, tied=True, bias=True),
    "qwen2-7b": _gated(3584, 28, 28, 4, 18944, 152064, tied=False, bias=True),
    "llama3-8b": _gated(4096, 32, 32, 8, 14336, 128256, tied=False, bias=False),
    "smollm2-135m": _gated(576, 30, 9, 3, 1536, 49152, tied=True, bias=False),
}
SIGLIP = (1152, 27, 4304, 14)  # so400m: width, layers, feed-forward, patch side
FRAME_TOKENS = {81: (384, 3), 121: (448, 3), 196: (384, 2), 256: (448, 2)}  # tokens: (pixels, k of k x k -> 1)


def siglip(tokens: int, hidden: int) -> Eyes:
    """SigLIP so400m with VILA's downsampling projector to width ``hidden`` (longvila spec, table A.6).

    Args:
        tokens: 196 or 81 (384 pixels), 256 or 121 (448 pixels); any other number is pooled from 196, or from 256 if it is more.
        hidden: Width of the language model.
    """
    size, k = FRAME_TOKENS.get(tokens, FRAME_TOKENS[196 if tokens < 196 else 256])
    side = -(-(size // SIGLIP[3]) // k)
    h, layers, f, patch = SIGLIP
    patches = (size // patch) ** 2
    layer = 4 * (h * h + h) + 2 * h * f + f + h + 4 * h
    pooling_head = h + 4 * (h * h + h) + 2 * h + 2 * h * f + f + h
    tower = 3 * patch * patch * h + h + patches * h + layers * layer + 2 * h + pooling_head
    if k == 2:
        widths = [4 * h, hidden, hidden]
        connector = 2 * 4 * h
    else:
        widths = [9 * h, 3 * h, hidden, hidden]
        connector = 2 * (9 * h + 3 * h)
    linear = sum(a * b for a, b in pairwise(widths))
    connector += linear + sum(widths[1:])
    flops = patches * layers * 2 * (4 * h * h + 2 * h * f) + 4 * patches**2 * h * layers + 2 * side**2 * linear
    kept = layers * patches * (8 * h + 2 * f) + 2 * side**2 * sum(widths)
    return Eyes(tower + connector, size, (side, side), flops, layers, kept, layers * patches * h)


def shapes_of(name: str, *, source: str | None = None, tokens_per_frame: int | None = None) -> Shapes:
    """The sizes of a model.

    Args:
        name: One of `TEXTS` (with SigLIP so400m as eyes), a folder with a config, or a hub id.
        source: Folder of a model that goes by another name.
        tokens_per_frame: Of a model without eyes of its own: 196 (the default) means SigLIP at 384 pixels, 256 at 448.

    Raises:
        ConfigError: It is neither.
    """
    if name.lower() in TEXTS:
        text = TEXTS[name.lower()]
        return Shapes(name.lower(), text, siglip(tokens_per_frame or 196, text.hidden))
    config = _config(source or name)
    text = _text(config.get_text_config(), name)
    if config.model_type != "vlm":
        return Shapes(name, text, siglip(tokens_per_frame or 196, text.hidden))
    return Shapes(name, text, _eyes(config, text.hidden), config.pooling)


def _config(name: str) -> Any:
    from transformers import AutoConfig

    import vlm.config  # noqa: F401  (registers our own)

    wrong = f"model={name!r} is not one of {', '.join(TEXTS)}, nor a folder or hub id (owner/name) with a config"
    if "/" not in name and not Path(name).is_dir():
        raise ConfigError(wrong)
    try:
        return AutoConfig.from_pretrained(name)
    except Exception as error:  # of any type: the readers of damaged configs raise what they like
        raise ConfigError(f"{wrong} that can be read ({str(error).splitlines()[0]})") from error


def _text(config: Any, name: str) -> Text:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv = getattr(config, "num_key_value_heads", None) or heads
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        total = sum(p.numel() for p in model.parameters())
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        sizes = (config.num_hidden_layers, heads, kv, width, config.intermediate_size, config.vocab_size)
    except (AttributeError, ValueError) as error:
        raise ConfigError(f"model={name!r} is no causal language model of equal layers: {error}") from error
    return Text(config.hidden_size, *sizes, total, tied)


def _eyes(config: Any, hidden: int) -> Eyes:
    """Of a `VLMConfig`: built and run on the meta device, which has shapes but no numbers."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from vlm.connectors import build_connector
    from vlm.encoders import build_vision_tower

    with torch.device("meta"):
        tower = build_vision_tower(config.vision_config)
        connector: Any = build_connector(config.connector, tower.out_dim, hidden, tower.grid)
        kept = _Kept((tower, connector))
        side = config.vision_config.image_size
        with torch.autograd.graph.saved_tensors_hooks(kept.add, lambda x: x), FlopCounterMode(display=False) as counter:
            connector(tower(torch.zeros(1, 3, side, side)))
    made = getattr(getattr(tower, "model", None), "config", None)
    layers = getattr(made, "num_hidden_layers", None) or 1
    parameters = sum(p.numel() for part in (tower, connector) for p in part.parameters())
    inputs = kept.numbers if layers == 1 else layers * tower.grid[0] * tower.grid[1] * tower.out_dim
    return Eyes(
        parameters, side, connector.out_grid(tower.grid), counter.get_total_flops(), layers, kept.numbers, inputs
    )


class _Kept:
    """Counts what is kept for a backward pass, everything once and no parameter. (On the meta device attention keeps its scores: more than
    a fused kernel keeps.)"""

    def __init__(self, parts: Any) -> None:
        self._parameters = {p.untyped_storage()._cdata for part in parts for p in part.parameters()}
        self._seen: dict[int, int] = {}

    @property
    def numbers(self) -> int:
        return sum(self._seen.values())

    def add(self, x: Any) -> Any:
        storage = x.untyped_storage()
        if storage._cdata not in self._parameters:
            self._seen[storage._cdata] = storage.nbytes() // x.element_size()
        return x
