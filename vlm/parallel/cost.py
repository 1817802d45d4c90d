"""What a run on a cluster would need and how long a step would take, said without running it (``vlm plan``).

Bytes on the way and query-key pairs are those of `vlm.parallel.plan`, counted to the byte; memory is `vlm.parallel.memory`; times are these
divided by data-sheet figures and the few constants of `vlm.parallel.hardware`. Of a step,

    linear + max(attention, ring) + heads exchanged + eyes + ..., or the gathering of weights if that takes longer

a ring hides behind attention, and weights are gathered behind everything; what waits is listed by what it waits for. Formulas: longvila
spec §B.1 and performance spec §1.4; the way they are joined is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlm.errors import ConfigError
from vlm.parallel.attention import Heads
from vlm.parallel.layout import Layout
from vlm.parallel.memory import BF16, OPTIMIZER, Job, memory
from vlm.parallel.plan import Choice, Matrix, carried, evaluate, exchanged

BACKWARD = 2.5  # attention: backward / forward, of a kernel that computes the scores again


@dataclass(frozen=True)
class Estimate:
    """One way to run a job.

    Attributes:
        choice: The way, with its counted bytes and pairs of one layer.
        memory: Bytes of the fullest process, by kind.
        near: Bytes that the busiest process sends within its node in a step, by what for.
        far: The same, to other nodes.
        seconds: Parts of a step (of reading a prompt, in mode "infer"); they add up.
        decode: Seconds per written token in mode "infer", else 0.
        fits: Whether the memory is enough.
    """

    choice: Choice
    memory: dict[str, float]
    near: dict[str, float]
    far: dict[str, float]
    seconds: dict[str, float]
    decode: float
    fits: bool

    @property
    def total_memory(self) -> float:
        """Bytes."""
        return sum(self.memory.values())

    @property
    def total_seconds(self) -> float:
        """Of a step."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class _Link:
    """Bytes that the busiest process sends: (within its node, to other nodes)."""

    near: float
    far: float

    def __sub__(self, other: _Link) -> _Link:
        return _Link(self.near - other.near, self.far - other.far)

    def seconds(self, job: Job, far_share: float) -> float:
        """Both kinds of links work at a time."""
        gpu = job.gpu
        return max(self.near / (gpu.near * job.constants.link), self.far / (gpu.far * far_share))


def estimate(job: Job, layout: Layout, inner: str) -> Estimate:
    """What one way costs.

    Args:
        job: What is run.
        layout: How a sequence is dealt out; one of `Job.ways`.
        inner: "gather" or "ring".
    """
    choice = evaluate(layout, job.shapes.text.attention, inner, node=job.node)
    held = memory(job, layout, inner)
    heads = [_busiest(m, job.node) for m in exchanged(layout, job.shapes.text.attention)]
    keys = [_busiest(m, job.node) for m in carried(layout, job.shapes.text.attention, inner)]
    seconds = _compute(job, choice)
    seconds |= _waiting(job, choice, heads, keys)
    weights = _weight_bytes(job)
    gathering = _on_link(job, weights).seconds(job, job.constants.link)
    seconds["waiting for weights"] = max(0.0, gathering - sum(seconds.values()))
    if job.trains:
        seconds["optimizer"] = _optimizer_seconds(job)
    sent = {"heads": _per_step(job, heads), "keys": _per_step(job, keys)}
    sent |= {"weights": _on_link(job, weights), "frames": _frames(job)}
    return Estimate(
        choice=choice,
        memory=held,
        near={name: link.near for name, link in sent.items()},
        far={name: link.far for name, link in sent.items()},
        seconds=seconds,
        decode=0.0 if job.trains else _decode_seconds(job, held),
        fits=sum(held.values()) <= job.usable,
    )


def estimates(job: Job) -> list[Estimate]:
    """All ways: those that fit first, the fastest first."""
    found = [estimate(job, layout, inner) for layout, inner in job.ways()]
    return sorted(found, key=lambda e: (not e.fits, e.total_seconds if e.fits else e.total_memory))


def fits(job: Job) -> bool:
    """Whether some way keeps within the memory."""
    return any(sum(memory(job, layout, inner).values()) <= job.usable for layout, inner in job.ways())


def largest(job: Job) -> Job | None:
    """The job with the longest sequences that fit, by bisection over `Job.unit`; None if even one unit does not."""
    if not fits(job.sized(1)):
        return None
    low, high = 1, 2
    while fits(job.sized(high)):
        low, high = high, 2 * high
        if high > 1 << 40:
            raise ConfigError("sequences of any length fit: the model keeps nothing per token")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(job.sized(middle)) else (low, middle)
    return job.sized(low)


# -- seconds -----------------------------------------------------------------------------------------------------------------


def _passes(job: Job) -> tuple[int, int]:
    """How often a layer runs (forward, backward)."""
    return (1, 0) if not job.trains else (2, 1) if job.checkpointing else (1, 1)


def _attention(job: Job, choice: Choice) -> float:
    """Seconds of attention of one layer, forward, of the process with most pairs."""
    return 4 * job.shapes.text.head_width * choice.pairs / (job.gpu.flops * job.gpu.attention)


def _compute(job: Job, choice: Choice) -> dict[str, float]:
    text, eyes = job.shapes.text, job.shapes.eyes
    forward, backward = _passes(job)
    rows = job.length * job.batch / job.sp_size
    speed = job.gpu.flops * job.constants.linear
    products = forward + 2 * backward
    return {
        "linear": products * 2 * text.multiplied * rows / speed,
        "attention": (forward + BACKWARD * backward) * text.layers * _attention(job, choice),
        "eyes": products * eyes.flops * job.frames_held / speed,
    }


def _waiting(job: Job, choice: Choice, heads: list[_Link], keys: list[_Link]) -> dict[str, float]:
    """What attention and the frames' tokens wait for."""
    (forward, backward), constants, layers = _passes(job), job.constants, job.shapes.text.layers
    inside = forward * heads[0].seconds(job, constants.link) + backward * heads[1].seconds(job, constants.link)
    inside += (2 * constants.latency) * (forward + backward) * (choice.ulysses > 1)
    if choice.inner == "ring":
        outside = forward * _hop_wait(job, choice, keys, backward=False) + backward * _hop_wait(
            job, choice, keys, backward=True
        )
    else:
        outside = forward * keys[0].seconds(job, constants.link) + backward * keys[1].seconds(job, constants.link)
        outside += constants.latency * (forward + backward) * (choice.ring > 1)
    return {
        "waiting for heads": layers * inside,
        "waiting for keys": layers * outside,
        "waiting for frames": _frames(job).seconds(job, constants.link),
    }


def _hop_wait(job: Job, choice: Choice, keys: list[_Link], *, backward: bool) -> float:
    """What a pass of one layer waits for its ring, beyond the attention that hides it. All hops are alike: the order is balanced."""
    latency, hops = job.constants.latency, choice.ring - 1
    attention = _attention(job, choice) * (BACKWARD if backward else 1)
    travel = keys[0].seconds(job, job.constants.ring) + latency * hops
    if not backward:
        return max(0.0, travel - attention)
    gradients = (keys[1] - keys[0]).seconds(job, job.constants.ring) + latency * (hops + 1)
    if job.software.hides_gradients:
        return max(0.0, travel + gradients - attention)
    return max(0.0, travel - attention) + gradients


def _optimizer_seconds(job: Job) -> float:
    """Reading gradient, fp32 weight and moments, and writing them and the bf16 weight."""
    count = job.shapes.parameters / (job.gpus if job.zero else 1)
    return count * (2 * OPTIMIZER + 2 * BF16) / job.gpu.bandwidth


def _decode_seconds(job: Job, held: dict[str, float]) -> float:
    """One more token: weights and the own share of the cache are read once, and every layer joins partial results."""
    steps = job.shapes.text.layers * job.constants.latency * (job.sp_size > 1)
    weights = job.shapes.text.parameters * BF16 / job.gpu.bandwidth
    gathering = _on_link(job, _weight_bytes(job)).seconds(job, job.constants.link)
    return max(weights, gathering) + held["cache"] / job.gpu.bandwidth + steps


# -- bytes on links ----------------------------------------------------------------------------------------------------------


def _busiest(matrix: Matrix, node: int) -> _Link:
    near = far = 0
    for rank, row in enumerate(matrix):
        first = rank // node * node
        inside = sum(row[first : first + node])
        near, far = max(near, inside), max(far, sum(row) - inside)
    return _Link(near, far)


def _per_step(job: Job, links: list[_Link]) -> _Link:
    (forward, backward), layers = _passes(job), job.shapes.text.layers
    return _Link(
        layers * (forward * links[0].near + backward * links[1].near),
        layers * (forward * links[0].far + backward * links[1].far),
    )


def _on_link(job: Job, size: float) -> _Link:
    """A collective of all processes: as fast as its slowest link."""
    return _Link(0, size) if job.gpus > job.node else _Link(size, 0)


def _weight_bytes(job: Job) -> float:
    """What a process sends of weights and gradients in a step: ZeRO 3 gathers the weights for both passes and sums the gradients up into
    shares; the others sum gradients up, and gather either them (0) or the new weights (1, 2)."""
    if job.gpus == 1:
        return 0.0
    times = (3 if job.zero == 3 else 2) if job.trains else (1 if job.zero == 3 else 0)
    return times * job.shapes.parameters * BF16 * (job.gpus - 1) / job.gpus


def _frames(job: Job) -> _Link:
    """Media tokens move to where their place in the sequence is held, and their gradients back: at most all of them."""
    if job.frames is None or job.sp_size == 1:
        return _Link(0, 0)
    rows = job.length * job.batch / job.sp_size
    size = rows * job.shapes.text.hidden * BF16 * (2 if job.trains else 1)
    return _Link(0, size) if job.sp_size > job.node else _Link(size, 0)


def hiding_length(job: Job, ulysses: int = 1) -> float:
    """Tokens per ring place from which a hop to another node hides behind attention, forward: c = 2 g b F / (2 BW), performance spec §1.4,
    with F and BW what is reached of them and the 2 of a causal mask.

    Args:
        job: What is run.
        ulysses: Processes inside, which share the heads of a ring place.
    """
    gpu = job.gpu
    heads = Heads(job.shapes.text.heads, job.shapes.text.kv_heads, ulysses)
    grouped = max(heads.used(u) / (stop - start) for u, (start, stop) in enumerate(heads.queries))
    return grouped * BF16 * gpu.flops * gpu.attention / (gpu.far * job.constants.ring)
