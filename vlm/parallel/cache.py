"""Keys and values of a shared sequence stay where they were made; attention to them is joined by log-sum-exp, in the same order
everywhere, so that all processes get the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from vlm.parallel.kernel import accumulator, attend
from vlm.parallel.mesh import Mesh

KeysValues = tuple[torch.Tensor, torch.Tensor]  # [tokens, K, d] each


@dataclass
class ShardedCache:
    """This process's share of the keys and values, by layer.

    Attributes:
        mesh: The processes.
        prompt: What was read; filled while the prompt goes through the layers.
        written: Tokens generated since; they go to the processes in turn.
        length: Tokens of the whole sequence so far.
    """

    mesh: Mesh
    prompt: dict[int, KeysValues] = field(default_factory=dict)
    written: dict[int, KeysValues] = field(default_factory=dict)
    length: int = 0

    def keep(self, layer: int, k_NKd: torch.Tensor, v_NKd: torch.Tensor) -> None:
        """Take the keys and values of this process's tokens of the prompt."""
        self.prompt[layer] = (k_NKd.detach(), v_NKd.detach())

    def __call__(
        self, q_NHd: torch.Tensor, k_NKd: torch.Tensor, v_NKd: torch.Tensor, *, scale: float | None, layer: int
    ) -> torch.Tensor:
        """Attention of one new token ``[1, H, d]`` to everything before it and itself."""
        scale = q_NHd.shape[2] ** -0.5 if scale is None else scale
        if self.length % self.mesh.size == self.mesh.rank:
            before = self.written.get(layer, (k_NKd[:0], v_NKd[:0]))
            self.written[layer] = (torch.cat([before[0], k_NKd]), torch.cat([before[1], v_NKd]))
        parts = [self._partial(q_NHd, held.get(layer), scale) for held in (self.prompt, self.written)]
        joined = _join(torch.stack(parts))
        if self.mesh.group is not None:
            every = [torch.empty_like(joined) for _ in range(self.mesh.size)]
            dist.all_gather(every, joined, group=self.mesh.group)
            joined = _join(torch.stack(every))
        return joined[:, :-1].to(q_NHd.dtype)[None]

    def _partial(self, q_1Hd: torch.Tensor, held: KeysValues | None, scale: float) -> torch.Tensor:
        """Attention to some keys, with its log-sum-exp as one more column ``[H, d + 1]``."""
        dtype = accumulator(q_1Hd.dtype)
        if held is None or not len(held[0]):
            nothing = torch.zeros(q_1Hd.shape[1], q_1Hd.shape[2] + 1, dtype=dtype, device=q_1Hd.device)
            nothing[:, -1] = float("-inf")
            return nothing
        out, lse = attend(q_1Hd, *held, causal=False, scale=scale)
        return torch.cat([out[0].to(dtype), lse[0, :, None].to(dtype)], 1)

    def nbytes(self) -> int:
        """Bytes held by this process."""
        held = [x for layers in (self.prompt, self.written) for pair in layers.values() for x in pair]
        return sum(x.numel() * x.element_size() for x in held)


def _join(parts_PHe: torch.Tensor) -> torch.Tensor:
    """Partial results ``[P, H, d + 1]`` -> the whole ``[H, d + 1]``."""
    out, lse = parts_PHe[..., :-1], parts_PHe[..., -1:]
    total = lse.logsumexp(0)
    return torch.cat([((lse - total).exp() * out).sum(0), total], -1)
