"""What of a model is saved and how it comes back: seeds, snapshots, changes made by plugins, the final export."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from train.checkpoint import Checkpoint, atomic_write, save_tensors
from train.stages import Recipe
from vlm.errors import CheckpointError, ConfigError, TrainingError
from vlm.plugins.parts import PARTS, PARTS_JSON, tensors_by_name

log = logging.getLogger(__name__)

FREE_TO_CHANGE = (
    *("out", "init", "save_every", "keep", "resume", "until", "workers", "prefetch"),
    *("report_to", "log_every", "progress", "device", "timeout", "nan"),
)


@dataclass
class Progress:
    """The numbers that a checkpoint carries besides tensors; they also fix the place in the data.

    Attributes:
        stage: Number of the stage.
        step: Optimizer steps done in it.
        global_step: Optimizer steps done in all stages.
        tokens: Tokens read, padding not counted, in all stages.
        targets: Target tokens among them.
        bad: Unusable samples in this stage.
        skipped: Updates skipped in this stage because they were not finite.
    """

    stage: int = 0
    step: int = 0
    global_step: int = 0
    tokens: int = 0
    targets: int = 0
    bad: int = 0
    skipped: int = 0

    def next_stage(self, number: int) -> Progress:
        """The start of stage ``number``; totals go on."""
        return replace(self, stage=number, step=0, bad=0, skipped=0)

    def add(self, **counts: int) -> None:
        """Add to the counters."""
        for name, count in counts.items():
            setattr(self, name, getattr(self, name) + count)


def seed_everything(*path: int) -> None:
    """Seed torch, numpy and random with a pure function of ``path``."""
    seed = int(np.random.SeedSequence(path).generate_state(1, np.uint64)[0])
    torch.manual_seed(seed % 2**63)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def snapshot(model: nn.Module, names: set[str] | None) -> dict[str, torch.Tensor]:
    """Tensors to save: all of them, or those in ``names``."""
    tensors = tensors_by_name(model)
    if names is not None:
        tensors = {name: tensor for name, tensor in tensors.items() if name in names}
    return {name: tensor.detach() for name, tensor in tensors.items()}


def live_buffers(model: nn.Module) -> set[str]:
    """Buffers of modules with parameters of their own that are being trained (batch norm statistics)."""
    owners = [(p, m) for p, m in model.named_modules() if any(q.requires_grad for q in m.parameters(recurse=False))]
    return {f"{path}.{key}".lstrip(".") for path, module in owners for key in module._buffers}


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> set[str]:
    """Copy a checkpoint's weights into the model; returns the names of those that were trained.

    Raises:
        CheckpointError: A tensor has no place in the model or another shape there.
    """
    own = tensors_by_name(model)
    for name, tensor in checkpoint.tensors["weights"].items():
        if name not in own:
            raise CheckpointError(
                f"{checkpoint.path}: {name!r} is not in the model; is this the recipe the checkpoint was made with?"
            )
        if own[name].shape != tensor.shape:
            raise CheckpointError(
                f"{checkpoint.path}: {name!r} has shape {tuple(tensor.shape)}, the model's has {tuple(own[name].shape)}"
            )
        with torch.no_grad():
            own[name].copy_(tensor)
    return set(checkpoint.state.get("trained", checkpoint.tensors["weights"]))


Fingerprints = dict[str, tuple[Any, ...]]


def fingerprints(model: nn.Module) -> Fingerprints:
    """(Shape, type, sum, sum of magnitudes) of every tensor by name."""
    found: Fingerprints = {}
    for name, tensor in tensors_by_name(model).items():
        values = tensor.detach().double()
        found[name] = (tuple(tensor.shape), tensor.dtype, float(values.sum()), float(values.abs().sum()))
    return found


def changed(before: Fingerprints, after: Fingerprints, trained: set[str]) -> set[str]:
    """What a plugin changed: names in ``after`` with another content, new names with a new content, and new names of
    tensors whose old name was in ``trained`` (a plugin that wraps a layer renames its weight)."""
    owners: dict[tuple[Any, ...], set[str]] = {}
    for name, content in before.items():
        owners.setdefault(content, set()).add(name)
    renamed = {n for n, c in after.items() if n not in before and (c not in owners or owners[c] & trained)}
    return renamed | {n for n, c in after.items() if n in before and before[n] != c}


def check_same_run(recipe: Recipe, found: Checkpoint) -> None:
    """Warn about settings that are not those of the checkpoint.

    Raises:
        ConfigError: The recipe has no such stage any more, or ``until`` names a stage that lies behind.
    """
    old = _flat(found.state["recipe"])
    name = found.state["recipe"]["stages"][found.stage]["name"]
    if found.stage >= len(recipe.stages) or recipe.stages[found.stage].name != name:
        raise ConfigError(
            f"stages: {found.path} stands in stage {found.stage} {name!r}, which this recipe has not; "
            "set out= to another folder"
        )
    if recipe.until in [stage.name for stage in recipe.stages[: found.stage]]:
        raise ConfigError(f"until={recipe.until!r}: {found.path} is past that stage already, in {name!r}")
    new = _flat(json.loads(json.dumps(recipe.as_dict())))
    for key in sorted(old.keys() | new.keys()):
        if key.split(".")[0] not in FREE_TO_CHANGE and old.get(key) != new.get(key):
            log.warning("%s was %r when the checkpoint was written and is %r now", key, old.get(key), new.get(key))


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict | list) and tree:
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for key, value in items for k, v in _flat(value, f"{path}.{key}" if path else str(key)).items()}
    return {path: tree}


def export_final(recipe: Recipe, model: Any, processor: Any, trained: set[str], done: int) -> Path:
    """Write ``OUT/final``: the trained parts, and how to put them into the model they came from
    (`vlm.plugins.parts.load_parts`).

    With ``save: all`` and no adapters left, the whole model and its processor are saved there as well, for
    ``from_pretrained``.

    Args:
        recipe: The run.
        model: After the last stage.
        processor: Saved next to a whole model; None if there is none.
        trained: Names of what was trained.
        done: How many stages were run.

    Raises:
        TrainingError: The folder cannot be written.
    """
    folder = Path(recipe.out) / "final"
    earlier = [] if recipe.init is None else json.loads((Path(recipe.init) / PARTS_JSON).read_text())["plugins"]
    plugins = [[asdict(plugin) for plugin in stage.all_plugins] for stage in recipe.stages[:done]]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{PARTS}"
        save_tensors(temporary, snapshot(model, trained))
        digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
        os.replace(temporary, folder / PARTS)
        parts = {
            "schema": 1,
            "sha256": digest,
            "model": recipe.as_dict()["model"],
            "plugins": [*earlier, *plugins],
            "recipe": recipe.as_dict(),
        }
        atomic_write(folder / PARTS_JSON, (json.dumps(parts, indent=1) + "\n").encode())
        whole = recipe.save == "all" and not any(".lora_" in name for name in tensors_by_name(model))
        for part in (model, processor) if whole else ():
            if hasattr(part, "save_pretrained"):
                part.save_pretrained(folder)
    except OSError as error:
        raise TrainingError(
            f"{folder} could not be written: {error}. Training is done and in the checkpoints; make room and start again"
        ) from error
    return folder
