"""DeepSpeed's two Ulysses and yunchang's ring and 2-D attention in the same model.

DeepSpeed runs as it is. yunchang does not run on a CPU: its kernels are CUDA's, and its plain torch kernels have no backward pass. The
shim at the end of this file, which is no part of the library, gives its torch ring the CPU kernel that `vlm.parallel` uses and puts the
gradients that it returns into order. (Its zigzag ring adds up in buffers that it overwrites if they are float32 already.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from scripts.mmsp.tower import Shape, System, Tower
from vlm.parallel import kernel
from vlm.parallel.layout import Layout

FUNCTION = "mmsp_function"  # name of an attention that is given as a keyword
DEEPSPEED_HF = "DeepSpeed UlyssesSPAttentionHF"
DEEPSPEED_QKV = "DeepSpeed DistributedAttention"


def builders(tower: Tower) -> list[tuple[str, Callable[[], System]]]:
    """Names and how to make them; a builder raises what the rival raises if it refuses."""
    world = dist.get_world_size()
    found = [(DEEPSPEED_HF, partial(deepspeed_hf, tower)), (DEEPSPEED_QKV, partial(deepspeed_qkv, tower))]
    for ulysses in (u for u in (1, 2, 4) if u < world):
        ring = world // ulysses
        found.append((yunchang_name(ulysses, ring), partial(yunchang, tower, ulysses, ring)))
    return [(name, build) for name, build in found]


def yunchang_name(ulysses: int, ring: int) -> str:
    """Name of a way of yunchang in the table."""
    return f"yunchang {'ring' if ulysses == 1 else '2-D'} {ulysses} × {ring}, mended"


def two_dimensional(shape: Shape, ulysses: int, ring: int) -> tuple[float, float]:
    """Bytes per process and layer of a ring of Ulysses groups, keys and their gradients in float32."""
    size, g, g_u = ulysses * ring, shape.kv / shape.heads, max(shape.kv, ulysses) / shape.heads
    exchange = (2 + 2 * g_u) * (ulysses - 1) / (ulysses * size)
    around = (2 * g * (ring - 1) / size, g * (6 * ring - 4) / size if ring > 1 else 0.0)
    return (exchange + around[0]) * shape.unit, (2 * exchange + around[1]) * shape.unit


# -- DeepSpeed ---------------------------------------------------------------------------------------------------------


def start_deepspeed() -> None:
    """Let DeepSpeed use the processes that are there already."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    # Its all-reduce in shared memory would be compiled here for minutes; Ulysses does not use it.
    __compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)


def deepspeed_hf(tower: Tower) -> System:
    """`register_with_transformers`, which replaces transformers' "sdpa" from now on."""
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    start_deepspeed()
    world, shape = dist.get_world_size(), tower.shape
    tower.model.set_attn_implementation("sdpa")
    UlyssesSPAttentionHF.register_with_transformers(tower.model, "sdpa", world, 1)
    layout = Layout((shape.length,), 1, world, "contiguous")
    return System(DEEPSPEED_HF, layout, "sdpa", {}, two_dimensional(shape, world, 1))


def deepspeed_qkv(tower: Tower) -> System:
    """`DistributedAttention` around torch's attention."""
    from deepspeed.runtime.sequence_parallel import parallel_state_sp
    from deepspeed.sequence.layer import DistributedAttention
    from deepspeed.utils import groups

    start_deepspeed()
    world, shape = dist.get_world_size(), tower.shape
    if parallel_state_sp._SEQUENCE_PARALLEL_GROUP is None:
        parallel_state_sp.initialize_sequence_parallel(world)
    groups.mpu = parallel_state_sp  # what its engine does; uneven heads are dealt out by the rank that it tells
    shared = DistributedAttention(_sdpa, dist.group.WORLD, scatter_idx=2, gather_idx=1)

    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = shared(q, k, v, 0)
        return out

    layout = Layout((shape.length,), 1, world, "contiguous")
    return System(DEEPSPEED_QKV, layout, _register(), {"function": function}, two_dimensional(shape, world, 1))


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q4, k4, v4 = (x.transpose(1, 2) for x in (q, k, v))
    out = nn.functional.scaled_dot_product_attention(q4, k4, v4, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2)


def _register() -> str:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(FUNCTION, _attend)
    AttentionMaskInterface.register(FUNCTION, lambda *args, **kwargs: None)
    return FUNCTION


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, function: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """``[1, H, N, d]`` -> ``[1, N, H, d]``."""
    return function(*(x.transpose(1, 2).contiguous() for x in (query, key, value))), None


# -- yunchang ----------------------------------------------------------------------------------------------------------


def yunchang(tower: Tower, ulysses: int, ring: int) -> System:
    """`LongContextAttention` around its torch ring."""
    from yunchang import LongContextAttention, set_seq_parallel_pg

    shape = tower.shape
    set_seq_parallel_pg(ulysses, ring, dist.get_rank(), dist.get_world_size())
    shared = LongContextAttention(ring_impl_type="basic_pytorch")
    shared.ring_attn_fn = mended_ring()

    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = shared(q, k, v, causal=True)
        return out

    layout = Layout((shape.length,), ulysses, ring, "contiguous")
    name, formula = yunchang_name(ulysses, ring), two_dimensional(shape, ulysses, ring)
    return System(name, layout, _register(), {"function": function}, formula)


def mended_ring() -> Callable[..., torch.Tensor]:
    """yunchang's ring with a CPU kernel in place of CUDA's, and its gradients in the order of its arguments."""
    from yunchang.ring import ring_pytorch_attn as module

    module.pytorch_attn_forward, module.pytorch_attn_backward = _forward, _backward

    class Mended(module.RingAttentionFunc):
        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            grad_q, grad_k, grad_v, *_ = module.RingAttentionFunc.backward(ctx, *grads)
            return None, grad_q, grad_k, grad_v, None, None  # the group is the first argument; theirs lacks its place

    def ring(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, group: Any, **options: Any) -> torch.Tensor:
        out: torch.Tensor = Mended.apply(group, q, k, v, options["softmax_scale"], options["causal"])
        return out

    return ring


def _forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, softmax_scale: float, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """q, k, v ``[1, N, H, d]`` -> out likewise and log-sum-exp ``[1, H, N]``."""
    out, lse = kernel.attend(q[0], k[0], v[0], causal=causal, scale=softmax_scale)
    return out[None], lse.T[None]


def _backward(
    *tensors: torch.Tensor, softmax_lse: torch.Tensor, softmax_scale: float, causal: bool
) -> tuple[torch.Tensor, ...]:
    """Of (gradient of out, q, k, v, out) with log-sum-exp ``[1, N, H]``: gradients of q, k and v."""
    grad, q, k, v, out = (x[0] for x in tensors)
    grads = kernel.attend_backward(grad, q, k, v, out, softmax_lse[0], causal=causal, scale=softmax_scale)
    return tuple(x[None].contiguous() for x in grads)
