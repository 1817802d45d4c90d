"""Counters: bytes that a process hands to others, bytes on the loopback wire, bytes kept for the backward pass, CPU seconds."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

_SILENT = ("c10d::barrier", "c10d::recv_")  # nothing of the caller's is sent
_DEEPSPEED = "deepspeed::dim_zero_all_to_all"  # its own operator; what happens inside is not seen


class SentBytes(TorchDispatchMode):
    """While it is active, counts the bytes that this process sends to others through torch.distributed.

    Backward passes on the CPU run in the calling thread, so they are counted, too.

    Raises:
        NotImplementedError: A collective ran that is not known here; nothing is left out silently.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name.startswith(("c10d::", "deepspeed::")) and name not in _SILENT:
            given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | (kwargs or {})
            self.total += _sent(name, given)
        return func(*args, **(kwargs or {}))


def _sent(name: str, given: dict[str, Any]) -> int:
    """Bytes that one call sends: gloo exchanges directly, gathers and reduces around a ring."""
    if name == _DEEPSPEED:
        size = dist.get_world_size(_named(given["group_name"]))
        return _nbytes(given["input"]) * (size - 1) // size
    group = dist.ProcessGroup.unbox(given["process_group"])
    size = group.size()
    if name == "c10d::alltoall_base_":
        x, splits = given["input"], given["input_split_sizes"]
        if not splits:
            return _nbytes(x) * (size - 1) // size
        others = sum(rows for place, rows in enumerate(splits) if place != group.rank())
        return others * (_nbytes(x) // len(x) if len(x) else 0)
    if name == "c10d::send":
        return sum(_nbytes(x) for x in given["tensors"])
    if name == "c10d::allgather_":
        return (size - 1) * sum(_nbytes(x) for x in given["input_tensors"])
    if name == "c10d::allreduce_":
        return 2 * (size - 1) * sum(_nbytes(x) for x in given["tensors"]) // size
    raise NotImplementedError(f"bytes of {name} are not counted yet; add a rule to {Path(__file__).name}")


def _named(name: str) -> Any:
    from deepspeed.sequence.layer import _all_to_all_groups

    return _all_to_all_groups[name]


def _nbytes(x: torch.Tensor) -> int:
    return x.numel() * x.element_size()


def loopback_bytes() -> int:
    """Bytes that the loopback interface of this network namespace has sent so far."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "lo":
            return int(counts.split()[8])
    raise OSError("there is no loopback interface in this network namespace")


class SavedBytes:
    """Bytes of the distinct storages that autograd keeps for the backward pass, parameters left out.

    Args:
        owned: Tensors that exist anyway: parameters and buffers.
    """

    def __init__(self, owned: Any) -> None:
        self._owned = {x.untyped_storage()._cdata for x in owned}
        self._seen: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x)

    @property
    def total(self) -> int:
        """Bytes kept so far."""
        return sum(self._seen.values())

    def _pack(self, x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in self._owned:
            self._seen[storage._cdata] = storage.nbytes()  # alive until the backward pass, so no address comes twice
        return x

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)


def cpu_seconds() -> float:
    """User and system seconds of this process so far, all of its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
