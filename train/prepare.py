"""What a stage does to a model before training: freeze policy, learning rates by module, recomputation."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from train.stages import Stage
from vlm.errors import ConfigError


def matches(pattern: str, name: str) -> bool:
    """Whether a ``trainable`` key covers a parameter: a module path prefix (``a.b`` covers ``a.b.c.weight``) or an
    fnmatch pattern.
    """
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
    """Only the parameters in ``rates`` get gradients; a module without any is in evaluation mode (dropout, batch
    norm).
    """
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


def set_gradient_checkpointing(model: Any, on: bool) -> None:
    """Switch recomputation of activations on or off.

    Raises:
        ConfigError: The model cannot do it.
    """
    if not on and not any(getattr(m, "gradient_checkpointing", False) for m in model.modules()):
        return
    word = "enable" if on else "disable"
    names = (f"activation_checkpointing_{word}", f"gradient_checkpointing_{word}")  # transformers from 5 on, and before
    switch = next((getattr(model, name) for name in names if hasattr(model, name)), None)
    if switch is None:
        raise ConfigError(f"gradient_checkpointing={on}: {type(model).__name__} has no {names[0]}()")
    switch(*([{"use_reentrant": False}] if on else []))


def keep_loss_connected(model: nn.Module) -> RemovableHandle:
    """Let every loss depend on a trained parameter, with slope 0 where it would depend on none.

    A micro-batch without media gives a connector no gradient. Without this its backward pass would fail, and between
    processes the others would wait for gradients that never come. Returns a handle to take the hook off again.
    """
    anchor = next(p for p in model.parameters() if p.requires_grad)

    def hook(_: nn.Module, __: Any, outputs: Any) -> Any:
        if torch.is_grad_enabled() and outputs.loss is not None and not outputs.loss.requires_grad:
            outputs.loss = outputs.loss + 0.0 * anchor.flatten()[0]
        return outputs

    return model.register_forward_hook(hook)


def divides_by_item_count(model: nn.Module) -> bool:
    """Whether the model takes ``num_items_in_batch`` and divides its summed loss by it (transformers' convention)."""
    from transformers import PreTrainedModel

    if hasattr(model, "accepts_loss_kwargs"):
        return bool(model.accepts_loss_kwargs)
    parameters = inspect.signature(model.forward).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return "num_items_in_batch" in parameters or (open_ended and isinstance(model, PreTrainedModel))
