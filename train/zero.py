"""DeepSpeed's ZeRO: optimizer state (stage 1), gradients (2) and weights (3) spread over all processes; 2 and 3 for text alone. FSDP2
(`train.sharded`) is what we recommend; this is for those who have a DeepSpeed configuration that they trust.

The loop keeps its optimizer, schedule and checkpoints: DeepSpeed gets torch's AdamW, and its spread state is gathered by parameter name, so
that a run can go on with another number of processes, or without DeepSpeed.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from train.sharded import Unit
from train.stages import Stage
from vlm.errors import ConfigError, MissingDependencyError

_OURS = (
    "optimizer",
    "scheduler",
    "fp16",
    "bf16",
    "amp",
    "gradient_clipping",
    "gradient_accumulation_steps",
    "train_batch_size",
)
_STATE = ("exp_avg", "exp_avg_sq")


def read_config(path: str | Path) -> dict[str, Any]:
    """A DeepSpeed configuration without what the recipe says already.

    Raises:
        ConfigError: It cannot be read, has no stage, or says something that belongs in the recipe.
    """
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        stage = config["zero_optimization"]["stage"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"parallel.zero={str(path)!r} is no DeepSpeed configuration with zero_optimization.stage: {error}"
        ) from error
    if stage not in (1, 2, 3):
        raise ConfigError(f"{path}: zero_optimization.stage={stage!r} must be 1, 2 or 3")
    if said := [key for key in _OURS if key in config]:
        raise ConfigError(
            f"{path}: {', '.join(said)} are what the recipe's stage says; take them out of the DeepSpeed configuration"
        )
    return dict(config)


class Zero:
    """A DeepSpeed engine around what a stage trains. Call it like the model; it is its own optimizer.

    Args:
        core: The model, or a `SequenceParallel` around it.
        optimizer: torch's AdamW over its parameters.
        config: See `read_config`.
        stage: Says the largest gradient norm.

    Raises:
        ConfigError: There is one process, the model has no decoder, or a step has several micro-batches, whose gradients DeepSpeed 0.19
            does not add up to what they are (found against one process).
        MissingDependencyError: DeepSpeed is not installed.
    """

    def __init__(self, core: Any, optimizer: torch.optim.AdamW, config: dict[str, Any], stage: Stage) -> None:
        try:
            import deepspeed
        except ImportError as error:
            raise MissingDependencyError("deepspeed", "deepspeed", "parallel.zero") from error
        if not torch.distributed.is_initialized():
            raise ConfigError("parallel.zero: there is one process; start several with torchrun or accelerate launch")
        if stage.grad_accum > 1:
            raise ConfigError(
                f"stages.{stage.name}: parallel.zero cannot be combined with grad_accum={stage.grad_accum}; set it to 1 (samples of a "
                "micro-batch can be packed), or use parallel.shard=true"
            )
        self.level = int(config["zero_optimization"]["stage"])
        model = getattr(core, "model", core)
        if not hasattr(model, "get_decoder"):
            raise ConfigError(f"parallel.zero: {type(model).__name__} has no decoder")
        backend = torch.distributed.get_backend()
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
        # Processes reduce gradients together, so each must have one for every weight; where weights are spread, none can be touched unasked.
        unit = core if self.level == 3 else Unit(core, model.get_decoder())
        fixed = {
            "train_micro_batch_size_per_gpu": 1,  # only for its own reports
            "gradient_accumulation_steps": 1,
            "gradient_clipping": stage.grad_clip,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": math.inf,
        }
        made = deepspeed.initialize(
            model=unit, optimizer=optimizer, config={**config, **fixed}, dist_init_required=False
        )
        self.engine, self.optimizer = made[0], made[1]
        self.parameters = [p for p in core.parameters() if p.requires_grad]

    def __call__(self, **inputs: Any) -> Any:
        """Run the model.

        Raises:
            ConfigError: Stage 2 or 3, and there is a picture or a sound.
        """
        if self.level > 1 and any(inputs.get(key) is not None for key in ("pixel_values", "vision_features", "mel")):
            raise ConfigError(
                f"parallel.zero: stage {self.level} sums gradients in the order in which they come, which differs where not every process "
                "has pictures, and sums are wrong then; use stage 1 or parallel.shard=true (FSDP2), or train on text alone"
            )
        return self.engine(**inputs)

    def backward(self, loss: torch.Tensor) -> None:
        """Make the gradients of a step."""
        self.engine.backward(loss)

    def norm(self) -> float:
        """Of the complete gradients over all processes, before clipping."""
        from deepspeed.utils import safe_get_full_grad

        squares = [g.double().square().sum() for p in self.parameters if (g := safe_get_full_grad(p)) is not None]
        return float(torch.stack(squares).sum().sqrt())

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """As of AdamW."""
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return groups

    def step(self) -> None:
        """Clip, and update the weights."""
        self.engine.step()

    def zero_grad(self) -> None:
        """Forget gradients that are not to be used, as DeepSpeed does where its own losses overflow."""
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.averaged_gradients.clear()

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def weights(self, model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """``tensors`` of the model by name, with those that are spread whole; every process must ask."""
        if self.level < 3:
            return tensors
        import deepspeed

        found = dict(tensors)
        for name, parameter in model.named_parameters():
            if name in found:
                with deepspeed.zero.GatheredParameters([parameter]):
                    found[name] = parameter.detach().clone()
        return found

    def state(self, names: dict[int, str]) -> dict[str, torch.Tensor]:
        """AdamW's state as `train.optim.optimizer_tensors` has it; every process must ask."""
        from deepspeed.utils import safe_get_full_optimizer_state

        if not any(self._base.state.values()):
            return {}
        self._link()
        step = next(entry["step"] for entry in self._base.state.values() if "step" in entry)
        found = {f"{names[id(p)]}/step": torch.as_tensor(step).clone() for p in self.parameters}
        for p in self.parameters:
            found |= {f"{names[id(p)]}/{key}": safe_get_full_optimizer_state(p, key).clone() for key in _STATE}
        return found

    def load_state(self, names: dict[int, str], tensors: dict[str, torch.Tensor]) -> None:
        """Inverse of `state`."""
        from deepspeed.utils import safe_set_full_optimizer_state

        steps = [tensor for name, tensor in tensors.items() if name.endswith("/step")]
        if not steps:
            return
        for flat in self._flat():
            self._base.state[flat] = {"step": steps[0].clone(), **{key: torch.zeros_like(flat) for key in _STATE}}
        self._link()
        for p in self.parameters:
            for key in _STATE:
                value = tensors[f"{names[id(p)]}/{key}"].to(p.device)
                safe_set_full_optimizer_state(p, value, key)

    @property
    def _base(self) -> torch.optim.Optimizer:
        base: torch.optim.Optimizer = self.optimizer.optimizer
        return base

    def _flat(self) -> list[torch.Tensor]:
        """This process's part of the weights, as AdamW sees it."""
        if self.level == 3:
            return list(self.optimizer.fp32_partitioned_groups_flat)
        return list(self.optimizer.single_partition_of_fp32_groups)

    def _link(self) -> None:
        """Tell DeepSpeed where each parameter's state is: it does so itself after the first group has stepped, for all, too early."""
        if self.level < 3:
            from deepspeed.utils import lazy_init_hp_params_optimizer_state

            for parameters, flat in zip(self.optimizer.bit16_groups, self._flat(), strict=True):
                lazy_init_hp_params_optimizer_state(parameters, flat, self._base.state)
