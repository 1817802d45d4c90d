"""Rivals that cannot run on a CPU: each is really tried, and its own words are the row."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from scripts.mmsp.jobs import told


def absent_job(rank: int) -> dict[str, str | None]:
    """What each attempt said in this process; None if it went through after all."""
    return {name: _attempt(attempt) for name, attempt in ATTEMPTS.items()}


def _attempt(attempt: Callable[[], object]) -> str | None:
    try:
        attempt()
    except BaseException as error:  # an assertion, an import, anything: it is what is asked for
        return told(error)
    return None


def torch_context_parallel() -> None:
    """torch's own, experimental."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.experimental import context_parallel
    from torch.nn.attention import SDPBackend, sdpa_kernel

    size = dist.get_world_size()
    mesh = init_device_mesh("cpu", (size,))
    buffers = [torch.randn(1, 8, 64 * size, 32) for _ in range(3)]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with context_parallel(mesh, buffers=buffers, buffer_seq_dims=[2, 2, 2]):
            q, k, v = (x.clone().requires_grad_() for x in buffers)
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()


def ring_flash_attn() -> None:
    """ring-flash-attn."""
    import ring_flash_attn  # noqa: F401


def megatron() -> None:
    """Megatron-core's attention with context parallelism of two."""
    from megatron.core.transformer.dot_product_attention import DotProductAttention
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(num_layers=1, hidden_size=256, num_attention_heads=8, context_parallel_size=2)
    DotProductAttention(config, layer_number=1, attn_mask_type=AttnMaskType.causal, attention_type="self")


def yunchang_as_shipped() -> None:
    """yunchang's torch ring without the shim of this benchmark."""
    from yunchang import LongContextAttention, set_seq_parallel_pg

    size = dist.get_world_size()
    set_seq_parallel_pg(1, size, dist.get_rank(), size)
    q, k, v = (torch.randn(1, 64, 8, 32, requires_grad=True) for _ in range(3))
    LongContextAttention(ring_impl_type="basic_pytorch")(q, k, v, causal=True).sum().backward()


ATTEMPTS: dict[str, Callable[[], None]] = {
    "torch context_parallel": torch_context_parallel,
    "ring-flash-attn": ring_flash_attn,
    "Megatron-core context parallelism": megatron,
    "yunchang as shipped": yunchang_as_shipped,
}
