"""What is trained, at which rate: freeze policy, parameter groups, learning-rate schedule, rotary base."""

from __future__ import annotations

import difflib
import fnmatch
import math
from typing import Any

import torch
from torch import nn

from train.stages import Stage
from vlm.errors import ConfigError


def matches(pattern: str, name: str) -> bool:
    """Whether a ``trainable`` key covers a parameter: a module path prefix (``a.b`` covers ``a.b.c.weight``) or an fnmatch pattern."""
    return name == pattern or name.startswith(pattern + ".") or fnmatch.fnmatchcase(name, pattern)


def learning_rates(model: nn.Module, stage: Stage) -> dict[str, float]:
    """Learning rate of every parameter that ``stage`` trains, by name.

    Raises:
        ConfigError: An entry matches nothing (near names are listed), or nothing is trained at all.
    """
    names = [name for name, _ in model.named_parameters()]
    rates: dict[str, float] = {}
    for pattern, lr in stage.trainable.items():
        found = [name for name in names if matches(pattern, name)]
        if not found:
            raise ConfigError(f"stages.{stage.name}.trainable.{pattern} matches no parameter; {_near(pattern, names)}")
        rates.update(dict.fromkeys(found, lr))
    rates = {name: rates[name] for name in names if rates.get(name, 0) > 0}
    if not rates:
        raise ConfigError(f"stages.{stage.name}.trainable={stage.trainable} trains nothing")
    return rates


def _near(pattern: str, names: list[str]) -> str:
    prefixes = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 1)}
    near = difflib.get_close_matches(pattern, sorted(prefixes), n=5, cutoff=0.4)
    top = list(dict.fromkeys(name.split(".")[0] for name in names))
    return f"near names: {', '.join(near)}" if near else f"top-level modules: {', '.join(top)}"


def freeze(model: nn.Module, rates: dict[str, float]) -> None:
    """Only the parameters in ``rates`` get gradients; a module without any is in evaluation mode (dropout, batch norm)."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in rates)
    _set_mode(model)


def _set_mode(module: nn.Module) -> None:
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        module.eval()
        return
    module.training = True
    for child in module.children():
        _set_mode(child)


def freeze_report(model: nn.Module, rates: dict[str, float]) -> list[str]:
    """One line for every top-level module: how much of it is trained, and at which rates."""
    lines = []
    for child, module in model.named_children():
        sizes = {f"{child}.{name}": p.numel() for name, p in module.named_parameters()}
        trained = sum(size for name, size in sizes.items() if name in rates)
        if not sizes:
            continue
        values = sorted({rates[name] for name in sizes if name in rates})
        what = "trainable" if trained else "frozen"
        lines.append(
            f"{child:<20} {what:<9} {trained:>13,} of {sum(sizes.values()):>13,} parameters"
            + (f"  lr {', '.join(f'{v:g}' for v in values)}" if values else "")
        )
    return lines


def build_optimizer(model: nn.Module, rates: dict[str, float], stage: Stage) -> torch.optim.AdamW:
    """AdamW with one group per learning rate and decay; biases and norms (fewer than two dimensions) do not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if name in rates:
            decay = stage.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((rates[name], decay), []).append(parameter)
    options = [{"params": p, "lr": lr, "base_lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]
    devices = {p.device.type for group in options for p in group["params"]}
    return torch.optim.AdamW(options, betas=stage.betas, fused=devices <= {"cpu", "cuda", "xpu", "mps"})


def lr_factor(stage: Stage, step: int) -> float:
    """Share of the learning rate at optimizer step ``step`` (0-based): linear warm-up, then the schedule, a pure function of the step."""
    warmup = stage.warmup if stage.warmup >= 1 else stage.warmup * stage.steps
    if step < warmup:
        return (step + 1) / (math.floor(warmup) + 1)
    if stage.schedule == "constant":
        return 1.0
    done = min((step - warmup) / max(stage.steps - warmup, 1), 1.0)
    shape = 1.0 - done if stage.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return stage.min_lr + (1.0 - stage.min_lr) * shape


def set_rope_theta(model: nn.Module, theta: float, *, seq_len: int) -> None:
    """Give the language model another rotary base and room for ``seq_len`` positions (context extension, LongVILA §3.3).

    Raises:
        ConfigError: The model has no rotary embedding built from a config.
    """
    found = False
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            config = getattr(child, "config", None)
            if "inv_freq" not in child._buffers or getattr(config, "rope_parameters", None) is None:
                continue
            config.rope_parameters["rope_theta"] = theta
            config.max_position_embeddings = max(config.max_position_embeddings, seq_len)
            setattr(parent, name, type(child)(config=config).to(child.inv_freq.device))
            found = True
    if not found:
        raise ConfigError(f"rope_theta={theta}: the model has no rotary embedding that is built from a config")


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, torch.Tensor]:
    """State of an optimizer as ``{"PARAMETER/exp_avg": tensor, ...}``; ``names`` maps ``id(parameter)`` to its name."""
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {f"{order[i]}/{key}": torch.as_tensor(value) for i, entry in state.items() for key, value in entry.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[int, str], tensors: dict[str, torch.Tensor]) -> None:
    """Inverse of `optimizer_tensors`."""
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        if name in order:
            state.setdefault(order.index(name), {})[entry] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
