"""Context extension: another rotary base for the language model, and room for more positions (LongVILA §3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from vlm.errors import ConfigError
from vlm.plugins import Plugin


@dataclass
class RotaryBase(Plugin):
    """Gives every rotary embedding that is built from a config another base. A stage's ``rope_theta`` applies it.

    Attributes:
        theta: The new base.
        seq_len: Least number of positions.
    """

    theta: float
    seq_len: int

    def prepare(self, model: nn.Module) -> nn.Module:
        """Replace the embeddings.

        Raises:
            ConfigError: The model has no rotary embedding built from a config.
        """
        found = False
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                config: Any = getattr(child, "config", None)
                frequencies = child._buffers.get("inv_freq")
                if frequencies is None or getattr(config, "rope_parameters", None) is None:
                    continue
                config.rope_parameters["rope_theta"] = self.theta
                config.max_position_embeddings = max(config.max_position_embeddings, self.seq_len)
                setattr(parent, name, type(child)(config=config).to(frequencies.device))
                found = True
        if not found:
            raise ConfigError(f"rope_theta={self.theta}: the model has no rotary embedding that is built from a config")
        return model
