"""Trained parts: a safetensors file with what training changed, and a JSON file that says how it fits into the model it
came from.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import nn

from vlm.errors import CheckpointError
from vlm.plugins import build_plugin

PARTS = "trainable.safetensors"
PARTS_JSON = "recipe.json"


def tensors_by_name(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter (tied ones once) and every persistent buffer."""
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters())
    for path, module in model.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and key not in module._non_persistent_buffers_set:
                tensors[f"{path}.{key}".lstrip(".")] = buffer
    return tensors


def load_parts(model: nn.Module, folder: Path) -> tuple[nn.Module, set[str]]:
    """Put the trained parts in ``folder`` (the ``final`` of a run) into ``model``; returns the model and the names
    loaded.

    Plugins of the run are applied first, stage by stage, so that adapters have a place to go.

    Raises:
        CheckpointError: A file is missing or damaged, or a tensor does not fit the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder)
    try:
        about = json.loads((folder / PARTS_JSON).read_text(encoding="utf-8"))
        data = (folder / PARTS).read_bytes()
        if hashlib.sha256(data).hexdigest() != about["sha256"]:
            raise CheckpointError(f"{folder / PARTS}: its sha256 is not the one in {PARTS_JSON}")
        tensors, stages = load(data), about["plugins"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} holds no trained parts: {error.filename} is missing") from error
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: damaged trained parts: {error}") from error
    for stage in stages:
        plugins = [build_plugin(p["call"], p["args"]) for p in stage]
        for plugin in plugins:
            model = plugin.prepare(model)
        for plugin in plugins:
            model = plugin.finish(model)
    _copy_into(model, tensors, folder)
    return model, set(tensors)


def _copy_into(model: nn.Module, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    own = tensors_by_name(model)
    for name, tensor in tensors.items():
        part = name.split(".")[0]
        if name not in own:
            raise CheckpointError(f"{folder}: the model's {part!r} has no {name!r}")
        if own[name].shape != tensor.shape:
            raise CheckpointError(
                f"{folder}: {name!r} has shape {tuple(tensor.shape)}, the model's has {tuple(own[name].shape)}"
            )
        with torch.no_grad():
            own[name].copy_(tensor)
