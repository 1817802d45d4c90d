"""Which processes share a sequence, and how: Ulysses groups inside, rings outside.

The processes of one sequence are neighbours, so that they sit in one node when they fit there; likewise those of one Ulysses group,
which talk most. Place in the sequence = u + r * U, with u the place in the Ulysses group and r the place in the ring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from vlm.errors import ConfigError

Group = Any  # torch.distributed.ProcessGroup; None where a group has one member and nothing is sent


@dataclass(frozen=True)
class Mesh:
    """The place of this process.

    Attributes:
        ulysses: Processes that exchange heads for tokens (U).
        ring: Processes that pass keys and values around (R).
        rank: Place in the sequence, 0 to U * R - 1.
        group: All processes of the sequence, in order; None without others.
        ulysses_group: Those with the same r.
        ring_group: Those with the same u.
    """

    ulysses: int = 1
    ring: int = 1
    rank: int = 0
    group: Group = None
    ulysses_group: Group = None
    ring_group: Group = None

    @property
    def size(self) -> int:
        """Processes that share a sequence."""
        return self.ulysses * self.ring

    @property
    def u(self) -> int:
        """Place in the Ulysses group."""
        return self.rank % self.ulysses

    @property
    def r(self) -> int:
        """Place in the ring."""
        return self.rank // self.ulysses


def build_mesh(ulysses: int = 1, ring: int = 1) -> Mesh:
    """Split all processes into sequences of ``ulysses * ring`` neighbours; every process calls this.

    Args:
        ulysses: U.
        ring: R.

    Raises:
        ConfigError: The number of processes is no multiple of U * R.
    """
    size = ulysses * ring
    if ulysses < 1 or ring < 1:
        raise ConfigError(f"ulysses={ulysses} and ring={ring} must be 1 or more")
    if size == 1:
        return Mesh()
    world = dist.get_world_size() if dist.is_initialized() else 1
    if world % size:
        raise ConfigError(f"{world} processes cannot be split into sequences of {ulysses} x {ring} = {size}")
    me, first = dist.get_rank(), dist.get_rank() // size * size
    mine: dict[str, Group] = {"group": None, "ulysses_group": None, "ring_group": None}
    for start in range(0, world, size):
        sets = {"group": [range(start, start + size)]}
        sets["ulysses_group"] = [range(start + r * ulysses, start + (r + 1) * ulysses) for r in range(ring)]
        sets["ring_group"] = [range(start + u, start + size, ulysses) for u in range(ulysses)]
        for name, members in sets.items():
            for ranks in members:
                group = dist.new_group(list(ranks)) if len(ranks) > 1 else None  # every process makes every group
                if me in ranks:
                    mine[name] = group
    return Mesh(ulysses, ring, me - first, **mine)
