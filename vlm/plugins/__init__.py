"""Plugins: what changes a model before training, adds a loss during it, or tidies up after it. One protocol for all.

A recipe lists plugins by registered name or by ``package.module:Class``; the training loop knows nothing of their
insides.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

from torch import Tensor, nn

from vlm.errors import ConfigError

PLUGINS = {
    "lora": "vlm.plugins.lora:Lora",
    "remember": "vlm.plugins.remember:Remember",
    "rotary_base": "vlm.plugins.rotary:RotaryBase",
    "soft_times": "vlm.plugins.soft_times:SoftTimes",
    "token_rows": "vlm.plugins.token_rows:TokenRows",
}


class Plugin(Protocol):
    """Three hooks; a subclass overrides those it needs."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """Once before training: returns the model to train. Must do the same to the same model every time (resuming
        repeats it).
        """
        return model

    def losses(self, batch: dict[str, Any], outputs: Any) -> dict[str, Tensor]:
        """After each forward pass: extra losses by name, each a mean per target token; they are added to the model's
        own.
        """
        return {}

    def finish(self, model: nn.Module) -> nn.Module:
        """Once after training: merge, slice, export; returns the model that goes on."""
        return model


def build_plugin(name: str, args: dict[str, Any] | None = None) -> Plugin:
    """Make the plugin ``name`` (a registered name or ``package.module:Class``) with its options.

    Raises:
        ConfigError: There is no such plugin, or it has no such option.
    """
    path = PLUGINS.get(name, name)
    module, colon, cls = path.partition(":")
    if not colon:
        raise ConfigError(f"no plugin {name!r}; registered: {', '.join(PLUGINS)}, or give package.module:Class")
    try:
        factory = getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"plugin {name!r} cannot be imported: {error}") from error
    try:
        return factory(**(args or {}))
    except TypeError as error:
        raise ConfigError(f"plugin {name!r} does not take these options: {error}") from error


__all__ = ["PLUGINS", "Plugin", "build_plugin"]
