"""What a process of a run holds, in bytes, by kind. Arithmetic on shapes; the scheme (ours, that of DeepSpeed and FSDP with bf16) is:

weights and gradients bf16; the optimizer keeps fp32 weights and two fp32 moments (12 bytes a parameter). ZeRO 1 shares the optimizer's part
out over all processes, 2 gradients as well, 3 (and FSDP) weights as well; with 3 two layers are gathered at a time. The loss is the chunked
one of `vlm.loss`, attention keeps no scores. Nothing is moved to the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vlm.errors import ConfigError
from vlm.loss import CHUNK
from vlm.parallel.attention import INNER
from vlm.parallel.hardware import CONSTANTS, OURS, Constants, Gpu, Software, gpu_named
from vlm.parallel.layout import Layout
from vlm.parallel.plan import held_bytes
from vlm.parallel.shapes import Shapes, shapes_of

BF16, FP32 = 2, 4
OPTIMIZER = 12  # bytes a parameter: fp32 weight and two moments of AdamW
MODES = ("train", "infer")


@dataclass(frozen=True)
class Job:
    """What is run on what.

    Attributes:
        shapes: The model.
        gpu: Kind of GPU.
        gpus: Number of GPUs, one process each.
        sp_size: Processes that share a sequence; ``gpus / sp_size`` groups work on different ones.
        length: Tokens of a sequence.
        frames: Frames of a sequence; None for text alone.
        per_frame: Tokens of a frame, instead of the model's own.
        batch: Sequences that a group packs together (they do not attend to each other).
        node: GPUs of a node.
        zero: 0 to 3.
        checkpointing: Only the inputs of layers are kept; everything else is computed again.
        mode: "train" or "infer" (a prompt is read into a cache that stays shared).
        software: How the training system does it.
        constants: What no data sheet says.

    Raises:
        ConfigError: The numbers do not go together.
    """

    shapes: Shapes
    gpu: Gpu
    gpus: int
    sp_size: int
    length: int
    frames: int | None = None
    per_frame: int | None = None
    batch: int = 1
    node: int = 8
    zero: int = 3
    checkpointing: bool = False
    mode: str = "train"
    software: Software = OURS
    constants: Constants = CONSTANTS

    def __post_init__(self) -> None:
        for name in ("gpus", "sp_size", "length", "batch", "node"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name}={value} must be 1 or more")
        if self.gpus > self.node and self.gpus % self.node:
            raise ConfigError(f"gpus={self.gpus} is not a multiple of node={self.node}; give whole nodes")
        if self.gpus % self.sp_size:
            raise ConfigError(f"sp_size={self.sp_size} does not divide gpus={self.gpus}")
        if self.zero not in (0, 1, 2, 3):
            raise ConfigError(f"zero={self.zero} is not one of 0, 1, 2, 3")
        if self.mode not in MODES:
            raise ConfigError(f"mode={self.mode!r} is not one of {', '.join(MODES)}")

    @property
    def trains(self) -> bool:
        """Whether gradients are wanted."""
        return self.mode == "train"

    @property
    def unit(self) -> int:
        """What a sequence grows by: one frame, or 1024 tokens."""
        return 1024 if self.frames is None else 1

    @property
    def units(self) -> int:
        """Length of a sequence in units."""
        return self.length // 1024 if self.frames is None else self.frames

    def sized(self, units: int) -> Job:
        """The same with sequences of so many units."""
        if self.frames is None:
            return replace(self, length=1024 * units)
        return replace(self, frames=units, length=self.shapes.tokens(units, self.per_frame))

    def layout(self, ulysses: int) -> Layout:
        """Who holds which tokens, with ``ulysses`` processes inside."""
        return Layout((self.length,) * self.batch, ulysses, self.sp_size // ulysses)

    def ways(self) -> list[tuple[Layout, str]]:
        """All ways to share a sequence: layouts and inner schemes."""
        most = min(self.sp_size, self.shapes.text.heads)
        layouts = [self.layout(u) for u in range(1, most + 1) if self.sp_size % u == 0]
        return [(x, inner) for x in layouts for inner in (INNER if x.ring > 1 else INNER[:1])]

    @property
    def frames_held(self) -> int:
        """Frames that one process looks at."""
        return -(-(self.frames or 0) * self.batch // self.sp_size)

    @property
    def usable(self) -> float:
        """Bytes of a GPU that a run can use."""
        return self.gpu.memory * self.constants.usable


def job_for(
    model: str,
    *,
    gpu: str,
    gpus: int,
    source: str | None = None,
    frames: int | None = None,
    tokens: int | None = None,
    tokens_per_frame: int | None = None,
    sp_size: int | None = None,
    zero: int | None = None,
    mode: str = "train",
    **more: Any,
) -> Job:
    """A job by names.

    Args:
        model: See `shapes_of`.
        gpu: See `gpu_named`.
        gpus: Number of GPUs.
        source: See `shapes_of`.
        frames: Frames of a sequence, or
        tokens: tokens of a sequence of text alone.
        tokens_per_frame: Instead of the model's own.
        sp_size: Default: all GPUs.
        zero: Default: 3 to train, 0 to infer.
        mode: "train" or "infer".
        more: Further attributes of `Job`.

    Raises:
        ConfigError: A name is unknown, or the numbers do not go together.
    """
    if (frames is None) == (tokens is None):
        raise ConfigError(f"frames={frames} and tokens={tokens}: give one of them, the length of a video or of a text")
    if (size := frames if tokens is None else tokens) is None or size < 1:
        raise ConfigError(f"{'frames' if tokens is None else 'tokens'}={size} must be 1 or more")
    if tokens_per_frame is not None and (tokens_per_frame < 1 or frames is None):
        raise ConfigError(f"tokens_per_frame={tokens_per_frame} must be 1 or more, and goes with frames")
    kind, shapes = gpu_named(gpu), shapes_of(model, source=source, tokens_per_frame=tokens_per_frame)
    if frames is None:
        shapes, length = Shapes(shapes.name, shapes.text), size
    else:
        length = shapes.tokens(frames, tokens_per_frame)
    return Job(
        shapes, kind, gpus, gpus if sp_size is None else sp_size, length, frames, tokens_per_frame, mode=mode,
        zero=(3 if mode == "train" else 0) if zero is None else zero, **more,
    )  # fmt: skip


def memory(job: Job, layout: Layout, inner: str) -> dict[str, float]:
    """Most bytes that one process holds at a time, by kind.

    Args:
        job: What is run.
        layout: How a sequence is dealt out.
        inner: "gather" or "ring".
    """
    text = job.shapes.text
    rows = -(-max(layout.ring_rows) // layout.ulysses)  # tokens of the fullest process
    parts = _states(job)
    if job.trains:
        kept = text.layers * text.hidden + text.kept if job.checkpointing else text.layers * text.kept
        parts["activations"] = rows * kept * BF16
    else:
        parts["activations"] = rows * text.kept * BF16  # of one layer; nothing is kept
        parts["cache"] = rows * text.layers * text.kv_numbers * BF16
    parts["keys"] = _keys(job, layout, inner, rows)
    parts["logits"] = _logits(job, rows)
    parts["eyes"] = _eyes(job)
    if job.software.whole_embeddings:
        parts["embeddings"] = job.length * job.batch * text.hidden * BF16
    return parts


def _states(job: Job) -> dict[str, float]:
    """Weights, gradients, optimizer, and the layers gathered for ZeRO 3."""
    count, share = job.shapes.parameters, job.gpus
    parts: dict[str, float] = {"weights": count * BF16 / (share if job.zero == 3 else 1)}
    if job.trains:
        parts["gradients"] = count * BF16 / (share if job.zero >= 2 else 1)
        parts["optimizer"] = count * OPTIMIZER / (share if job.zero >= 1 else 1)
    if job.zero == 3 and share > 1:
        text = job.shapes.text
        layer = (text.multiplied - text.vocabulary * text.hidden) / text.layers
        largest = max(2 * layer, text.vocabulary * text.hidden)  # this layer and the next, or the head
        parts["gathered"] = largest * BF16 * (2 if job.trains else 1)  # weights and their gradients
    return parts


def _keys(job: Job, layout: Layout, inner: str, rows: int) -> float:
    """Keys and values of others, beyond a process's own (which count as activations), and their fp32 gradients for one layer."""
    if layout.size == 1:
        return 0.0
    text, held = job.shapes.text, held_bytes(layout, job.shapes.text.attention, inner)
    if not job.trains:
        return held
    sums = held * FP32 / BF16
    others = max(held - rows * text.kv_numbers * BF16, 0)
    keeps_all = inner == "gather" and not job.checkpointing  # fetched once, kept until the backward pass
    return others * (text.layers if keeps_all else 1) + sums


def _logits(job: Job, rows: int) -> float:
    text = job.shapes.text
    if not job.trains:
        return text.vocabulary * FP32
    if not job.software.chunked_loss:
        return rows * text.vocabulary * 3 * FP32  # logits, log-probabilities, gradient
    return (
        min(CHUNK, rows) * text.vocabulary * (FP32 + BF16) + text.vocabulary * text.hidden * FP32
    )  # and the head's gradient


def _eyes(job: Job) -> float:
    eyes, frames = job.shapes.eyes, job.frames_held
    pixels = 3 * eyes.image_size**2
    if not job.trains:
        return frames * (pixels + eyes.kept / eyes.layers) * BF16  # one layer of all frames at once
    kept = eyes.kept_inputs + eyes.kept / eyes.layers if job.checkpointing and eyes.layers > 1 else eyes.kept
    return frames * (pixels + kept) * BF16
