"""Low-rank adapters (LoRA, Hu et al. 2021) through peft, injected in place: the model keeps its class and its
methods.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from vlm.errors import ConfigError, MissingDependencyError
from vlm.plugins import Plugin


@dataclass
class Lora(Plugin):
    """Adds ``x -> B A x * alpha / r`` next to linear layers. Train them with the pattern ``*.lora_*``.

    Attributes:
        targets: Names of the linear layers (``q_proj``), or one regular expression for whole module paths.
        within: Only below this module path, e.g. ``language_model``.
        r: Rank.
        alpha: Scale; the update is multiplied by ``alpha / r``.
        dropout: Dropout in front of A.
        dora: Weight-decomposed variant (DoRA) with a trained magnitude per output.
        merge: Fold the adapters into the weights when training ends; otherwise they stay separate (and small).
        options: More arguments of `peft.LoraConfig`.
    """

    targets: list[str] | str = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    within: str | None = None
    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    dora: bool = False
    merge: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Inject the adapters; B starts at zero, so the model's output does not change. Adapters of an earlier stage
        are kept.

        Raises:
            ConfigError: No layer has one of the target names.
            MissingDependencyError: peft is not installed.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise MissingDependencyError("peft", "train", "the plugin 'lora'") from error
        if any(".lora_" in name for name, _ in model.named_parameters()):
            return model
        config = LoraConfig(
            target_modules=self.pattern(),
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            use_dora=self.dora,
            **self.options,
        )
        try:
            return inject_adapter_in_model(config, model)
        except ValueError as error:
            raise ConfigError(f"plugin lora: targets={self.targets!r}, within={self.within!r}: {error}") from error

    def pattern(self) -> str:
        """The regular expression that peft matches against whole module paths."""
        if isinstance(self.targets, str):
            names = self.targets
        else:
            names = r"(.*\.)?(" + "|".join(re.escape(t) for t in self.targets) + ")"
        return rf"{re.escape(self.within)}\.(?:{names})" if self.within else names

    def finish(self, model: nn.Module) -> nn.Module:
        """With ``merge``: replace each adapted layer by one plain layer that computes the same."""
        if not self.merge:
            return model
        from peft.tuners.tuners_utils import BaseTunerLayer

        for path, layer in list(model.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                layer.merge(safe_merge=True)
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, layer.get_base_layer())
        if hasattr(model, "peft_config"):
            del model.peft_config
        return model
