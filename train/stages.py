"""Recipes and stages: what a training run is, as data. Dataclass = YAML = command line.

A recipe names a model and a list of stages; each stage starts from the weights the previous one left. Any field can be
overridden by its
dotted path, stages by name or by number: ``python -m train tiny seed=3 stages.sft.steps=20
    stages.0.data.args.size=64``.
"""

from __future__ import annotations

import typing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from train.recipe_files import as_call, check_keys, check_not_none, naming, parse, read_tree
from vlm.errors import ConfigError


@dataclass
class Call:
    """Something to be called: a dotted path and keyword arguments. In YAML a bare string is a call without arguments.

    Attributes:
        call: ``package.module:name``. For a model also a preset, a folder or a hub id; for a plugin also a registered
            name.
        args: Keyword arguments.
    """

    call: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class Parallel:
    """How processes share sequences (MM-SP); see `vlm.parallel`.

    Attributes:
        sp_size: Processes that share a sequence; the rest of the world is data parallel.
        ulysses: Of these, how many exchange heads for tokens; the others form rings. None: whatever sends the fewest bytes.
        inner: What rings do: ``gather`` (fewest bytes) or ``ring`` (least memory). None: whatever sends the fewest bytes.
        order: How a sequence is dealt out over a ring; ``zigzag`` balances the work.
        node: Processes of a node, between which sending is cheap.
        shard: Spread weights, gradients and optimizer state over all processes (FSDP2), instead of keeping them whole on each (DDP).
        zero: The same by DeepSpeed: path of its configuration (`train.zero`).
    """

    sp_size: int = 1
    ulysses: int | None = None
    inner: Literal["gather", "ring"] | None = None
    order: Literal["zigzag", "contiguous"] = "zigzag"
    node: int = 8
    shard: bool = False
    zero: str | None = None


@dataclass
class Stage:
    """One stage of a curriculum.

    Attributes:
        name: Short name; appears in logs, checkpoints and override paths.
        trainable: Learning rate by module path prefix (``mm_projector``) or pattern (``*.lora_*``). The last entry that
            matches a parameter counts; 0 freezes. Everything that no entry matches is frozen.
        data: Makes the dataset. Receives ``seed``, ``processor``, ``frames`` and ``seq_len`` too if it has arguments of
            that name. Item i must be a pure function of the seed and i, with generators of its own (global ones are the model's).
        steps: Optimizer steps.
        batch_size: Samples per optimizer step, over all processes and accumulation steps together.
        grad_accum: Micro-batches per process and step; more of them need less memory and give the same result.
        seq_len: Longest example, tokens. A longer one counts as unusable (see ``max_bad``).
        frames: Frames per video; None leaves it to the processor.
        rope_theta: New rotary base of the language model, for context extension.
        schedule: Learning rate after the warm-up.
        warmup: Linear warm-up; below 1 a fraction of ``steps``, from 1 on a number of steps.
        min_lr: Where ``cosine`` and ``linear`` end, as a fraction of the learning rate.
        weight_decay: AdamW weight decay of parameters with two dimensions or more.
        betas: AdamW betas.
        grad_clip: Largest gradient norm; 0 turns clipping off.
        dtype: Precision of the forward pass (``bf16`` is autocast; weights and optimizer stay as they are).
        gradient_checkpointing: Recompute activations in the backward pass.
        packed: Read the samples of a micro-batch one after the other, without padding; they do not attend to each other.
        parallel: How processes share sequences; shared sequences are always packed.
        group_by_length: Batch samples of similar length; the dataset needs a ``lengths`` attribute.
        max_bad: Share of samples that may be unusable (unreadable, too long, without a target) before training stops.
            An unusable sample is replaced by its neighbour, named in the log and counted.
        collate: Makes a batch of a list of examples; default: the processor's ``collate``, or padding.
        plugins: Plugins of `vlm.plugins`, applied in order.
    """

    name: str
    trainable: dict[str, float]
    data: Call
    steps: int
    batch_size: int = 8
    grad_accum: int = 1
    seq_len: int = 2048
    frames: int | None = None
    rope_theta: float | None = None
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.03
    min_lr: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float = 1.0
    dtype: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
    packed: bool = False
    parallel: Parallel = field(default_factory=Parallel)
    group_by_length: bool = False
    max_bad: float = 0.0
    collate: Call | None = None
    plugins: list[Call] = field(default_factory=list)

    @property
    def all_plugins(self) -> list[Call]:
        """The rotary base if it is new, then `plugins`."""
        if self.rope_theta is None:
            return self.plugins
        return [Call("rotary_base", {"theta": self.rope_theta, "seq_len": self.seq_len}), *self.plugins]

    def __post_init__(self) -> None:
        check_not_none(self)
        for name in ("steps", "batch_size", "grad_accum", "seq_len"):
            if getattr(self, name) < 1:
                raise ConfigError(f"stages.{self.name}.{name}={getattr(self, name)} must be at least 1")
        for name in ("warmup", "min_lr", "weight_decay", "grad_clip", "max_bad"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"stages.{self.name}.{name}={getattr(self, name)} must be finite and not negative")
        for name, value in (
            ("sp_size", self.parallel.sp_size),
            ("ulysses", self.parallel.ulysses),
            ("node", self.parallel.node),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"stages.{self.name}.parallel.{name}={value} must be at least 1")
        for name in ("rope_theta", "frames"):
            if (value := getattr(self, name)) is not None and not 0 < value < float("inf"):
                raise ConfigError(f"stages.{self.name}.{name}={value} must be positive")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"stages.{self.name}.betas={list(self.betas)} must be at least 0 and below 1")
        for pattern, lr in self.trainable.items():
            if not 0 <= lr < float("inf"):
                raise ConfigError(
                    f"stages.{self.name}.trainable.{pattern}={lr} must be a finite learning rate, 0 to freeze"
                )
        if self.batch_size % self.grad_accum:
            raise ConfigError(
                f"stages.{self.name}.batch_size={self.batch_size} must be a multiple of grad_accum={self.grad_accum}: "
                "batch_size counts the samples of a whole optimizer step"
            )


@dataclass
class Recipe:
    """One training run.

    Attributes:
        model: A preset, folder or hub id for `vlm.load`, or ``package.module:function`` that returns a model, a pair
            (model, processor) or an object with these two attributes.
        stages: The curriculum, in order.
        out: Folder for checkpoints, logs and the result.
        init: Folder of trained parts to start from (``final`` of another run).
        seed: Decides data order, initialisation and dropout.
        save: ``trainable`` keeps what any stage has trained so far, ``all`` the whole model.
        save_every: Steps between checkpoints.
        keep: How many checkpoint versions to keep, at least 2.
        resume: Go on from the newest sound checkpoint in ``out``; without it an ``out`` that has checkpoints is
            refused.
        until: Stop after the stage of this name.
        nan: What to do when loss or gradient is not finite: ``stop``, or ``skip`` the update and go on.
        workers: Processes that prepare data; 0 uses one thread of the training process.
        prefetch: Micro-batches prepared ahead (per worker).
        report_to: Trackers known to accelerate, by name (tensorboard, wandb, trackio, ...).
        log_every: Steps between log records.
        progress: Show a progress bar.
        device: ``auto`` takes an accelerator if there is one.
        timeout: Seconds after which a collective operation between processes gives up.
    """

    model: Call
    stages: list[Stage]
    out: str
    init: str | None = None
    seed: int = 0
    save: Literal["trainable", "all"] = "trainable"
    save_every: int = 200
    keep: int = 2
    resume: bool = True
    until: str | None = None
    nan: Literal["stop", "skip"] = "stop"
    workers: int = 1
    prefetch: int = 2
    report_to: list[str] = field(default_factory=lambda: ["tensorboard"])
    log_every: int = 1
    progress: bool = True
    device: Literal["auto", "cpu"] = "auto"
    timeout: float = 600.0

    def __post_init__(self) -> None:
        check_not_none(self)
        names = [s.name for s in self.stages]
        if not names:
            raise ConfigError("stages: a recipe needs at least one stage")
        if len(set(names)) != len(names):
            raise ConfigError(f"stages: names must differ, got {names}")
        if self.until is not None and self.until not in names:
            raise ConfigError(f"until={self.until!r} is not a stage of this recipe; stages: {', '.join(names)}")
        if self.keep < 2:
            raise ConfigError(
                f"keep={self.keep} must be at least 2: a damaged newest checkpoint falls back to the one before"
            )
        for name in ("save_every", "log_every", "prefetch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("workers", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        if not 0 < self.timeout < float("inf"):
            raise ConfigError(f"timeout={self.timeout} must be a positive number of seconds")

    def as_dict(self) -> dict[str, Any]:
        """The recipe as JSON-ready data, every default filled in."""
        return asdict(self)


def load_recipe(recipe: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file, apply ``key=value`` overrides and check everything.

    Args:
        recipe: Path of a YAML file, or the name of a shipped recipe (``tiny``).
        overrides: Dotted paths with YAML values, e.g. ``["out=runs/a", "stages.align.trainable.mm_projector=1e-3"]``.

    Raises:
        ConfigError: The file is missing or is no YAML, a key is unknown or a value has the wrong type; the message
            names the key.
    """
    tree = read_tree(recipe, overrides)
    with naming(recipe):
        return parse_recipe(tree)


def parse_recipe(tree: dict[str, Any]) -> Recipe:
    """Turn nested data into a checked `Recipe`.

    Raises:
        ConfigError: Names the key that is unknown, missing or of the wrong type.
    """
    tree = dict(tree)
    stages = tree.get("stages")
    if not isinstance(stages, list) or not all(isinstance(s, dict) for s in stages):
        raise ConfigError("stages: a recipe needs a list of stages, each a mapping")
    tree["model"] = as_call(tree["model"]) if "model" in tree else {}
    tree["stages"] = [_normal_stage(s) for s in stages]
    for number, stage in enumerate(tree["stages"]):
        where = f"stages.{stage.get('name', number)}."
        for key in ("data", "collate"):
            check_keys(Call, stage.get(key), f"{where}{key}.")
        for plugin in stage.get("plugins") or ():
            check_keys(Call, plugin, f"{where}plugins.")
        parse(Stage, stage, where=where)
    check_keys(Call, tree["model"], "model.")
    return typing.cast(Recipe, parse(Recipe, tree))


def _normal_stage(stage: dict[str, Any]) -> dict[str, Any]:
    """Bare strings become calls."""
    stage = dict(stage)
    for key in ("data", "collate"):
        if key in stage:
            stage[key] = as_call(stage[key])
    if isinstance(stage.get("plugins"), list):
        stage["plugins"] = [as_call(p) for p in stage["plugins"]]
    return stage
