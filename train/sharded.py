"""Weights, gradients and optimizer state spread over all processes: FSDP2 (`torch.distributed.fsdp.fully_shard`), on any device.

Each block of the language model is gathered when it is due; everything else (eyes, ears, connector, embeddings, head) is gathered once a
step, whether a process has pictures or not, so that no process waits for another. A sharded model can not be changed by plugins: the
loop ends such a stage with a checkpoint and goes on from it with a fresh model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vlm.errors import ConfigError


class Unit(nn.Module):
    """What is trained, as one module whose weights are whole while it runs.

    Processes gather and sum weights together, so all must run through all blocks, forward and backward, and give every trained weight
    outside of them a gradient, whatever they have to look at: those without pictures or targets add zeros.

    Args:
        core: The model, or a `SequenceParallel` around it.
        decoder: Its blocks, embeddings in and hidden states out.
    """

    def __init__(self, core: Any, decoder: nn.Module) -> None:
        super().__init__()
        self.core = core
        self._hidden: torch.Tensor | None = None
        decoder.register_forward_pre_hook(self._enter, with_kwargs=True)
        decoder.register_forward_hook(self._leave)

    def forward(self, **inputs: Any) -> Any:
        """As ``core``."""
        outputs = self.core(**inputs)
        if torch.is_grad_enabled() and outputs.loss is not None and self._hidden is not None:
            outputs.loss = outputs.loss + 0.0 * self._hidden.flatten()[0]
        self._hidden = None
        return outputs

    def _enter(
        self, decoder: Any, args: tuple[Any, ...], inputs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        embeds = inputs.get("inputs_embeds")
        if embeds is None:  # a language model alone
            embeds = decoder.get_input_embeddings()(inputs["input_ids"])
            inputs = {**inputs, "input_ids": None}
        if torch.is_grad_enabled():
            nothing = 0.0 * sum(p.flatten()[0] for p in self._outside() if p.requires_grad)
            embeds = embeds + torch.as_tensor(nothing, device=embeds.device).to(embeds.dtype)
        return args, {**inputs, "inputs_embeds": embeds}

    def _leave(self, _: nn.Module, __: tuple[Any, ...], outputs: Any) -> None:
        self._hidden = outputs.last_hidden_state

    def _outside(self) -> list[nn.Parameter]:
        from torch.distributed.fsdp import FSDPModule

        found: dict[int, nn.Parameter] = {}
        waiting: list[nn.Module] = [self]
        while waiting:
            module = waiting.pop()
            found |= {id(p): p for p in module.parameters(recurse=False)}
            waiting += [child for child in module.children() if not isinstance(child, FSDPModule)]
        return list(found.values())


def shard(core: Any, accelerator: Any) -> Unit:
    """Spread ``core`` over all processes, in place.

    With a plugin of accelerate for FSDP2 (``fsdp_version: 2`` in its config file) precision and offloading are as it says.

    Raises:
        ConfigError: There are no blocks to spread, or no processes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if accelerator.num_processes == 1:
        raise ConfigError("parallel.shard: there is one process; start several with torchrun or accelerate launch")
    model = getattr(core, "model", core)
    decoder: Any = model.get_decoder() if hasattr(model, "get_decoder") else None
    if not getattr(decoder, "layers", None):
        raise ConfigError(f"parallel.shard: {type(model).__name__} has no decoder layers to spread over processes")
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    options: dict[str, Any] = {"mesh": init_device_mesh(accelerator.device.type, (accelerator.num_processes,))}
    options["mp_policy"] = getattr(plugin, "mixed_precision_policy", None) or MixedPrecisionPolicy()
    if offload := getattr(plugin, "cpu_offload", None):
        options["offload_policy"] = offload
    unit = Unit(core.to(accelerator.device), decoder)
    for layer in decoder.layers:
        fully_shard(layer, **options)
    fully_shard(unit, **options)
    return unit


def gathered(tensors: dict[str, torch.Tensor], *, keep: bool) -> dict[str, torch.Tensor]:
    """Tensors that are spread over processes, gathered one by one; every process must ask, and those without ``keep`` get none."""
    found = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        if keep:
            found[name] = full.cpu()
    return found


def like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """``tensor`` spread over processes as ``parameter`` is, if that is and the two have one shape."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    moved = tensor.to(parameter.device_mesh.device_type)
    return distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None)
