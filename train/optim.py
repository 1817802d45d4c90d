"""AdamW, its learning-rate schedule, and its state by parameter name."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from train.sharded import like
from train.stages import Stage


def build_optimizer(model: nn.Module, rates: dict[str, float], stage: Stage) -> torch.optim.AdamW:
    """AdamW with one group per learning rate and decay; biases and norms (fewer than two dimensions) do not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if name in rates:
            decay = stage.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((rates[name], decay), []).append(parameter)
    options = [{"params": p, "lr": lr, "base_lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]
    devices = {p.device.type for parameters in groups.values() for p in parameters}
    return torch.optim.AdamW(options, betas=stage.betas, fused=devices <= {"cpu", "cuda", "xpu", "mps"})


def lr_factor(stage: Stage, step: int) -> float:
    """Share of the learning rate at optimizer step ``step`` (0-based): linear warm-up, then the schedule, a pure
    function of the step.
    """
    warmup = stage.warmup if stage.warmup >= 1 else stage.warmup * stage.steps
    if step < warmup:
        return (step + 1) / (math.floor(warmup) + 1)
    if stage.schedule == "constant":
        return 1.0
    done = min((step - warmup) / max(stage.steps - warmup, 1), 1.0)
    shape = 1.0 - done if stage.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return stage.min_lr + (1.0 - stage.min_lr) * shape


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, torch.Tensor]:
    """State of an optimizer as ``{"PARAMETER/exp_avg": tensor, ...}``; ``names`` maps ``id(parameter)`` to its name."""
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {f"{order[i]}/{key}": torch.as_tensor(value) for i, entry in state.items() for key, value in entry.items()}


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: dict[int, str], tensors: dict[str, torch.Tensor]
) -> None:
    """Inverse of `optimizer_tensors`."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    order = [names[id(p)] for p in parameters]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        if name in order:
            place = order.index(name)
            state.setdefault(place, {})[entry] = like(value, parameters[place])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
