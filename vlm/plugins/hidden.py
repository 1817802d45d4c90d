"""What the decoder gives out, for plugins whose loss needs the logits of some tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vlm.errors import ConfigError


class Hidden:
    """Watches a `VLMForConditionalGeneration`: hidden states in, logits of chosen rows out.

    Args:
        model: The model.
        plugin: Name of who asks, for errors.
    """

    def __init__(self, model: Any, plugin: str) -> None:
        self._plugin, self._head = plugin, model.get_output_embeddings()
        self._hidden: Tensor | None = None
        self._hook = model.get_decoder().register_forward_hook(self._watch)

    def take(self, batch: dict[str, Any]) -> Tensor:
        """Hidden states ``[B, L, D]`` of the last forward pass, once.

        Raises:
            ConfigError: They are not those of ``batch``: its sequences are shared by several processes.
        """
        hidden_BLD, self._hidden = self._hidden, None
        if hidden_BLD is None or hidden_BLD.shape[:2] != batch["labels"].shape:
            raise ConfigError(f"the plugin {self._plugin!r} does not work with sequences shared by several processes")
        return hidden_BLD

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """What the head makes of them, ``[N, V]``."""
        logits: Tensor = self._head(hidden_ND)
        return logits

    def release(self) -> None:
        """Stop watching."""
        self._hook.remove()

    def _watch(self, module: Any, inputs: Any, output: Any) -> None:
        self._hidden = output.last_hidden_state
