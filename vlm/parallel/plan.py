"""How many processes of a sequence go inside (Ulysses) and how many around (ring), and by which inner scheme: counted bytes decide.

Nothing is estimated here: traffic, held keys and query-key pairs are counted from the very ranges that the attention uses, so
they are exact for uneven lengths, packed documents and any number of heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlm.errors import ConfigError
from vlm.parallel.attention import INNER, Heads
from vlm.parallel.layout import Layout, rows_in

Matrix = list[list[int]]  # [from][to]


@dataclass(frozen=True)
class AttentionShape:
    """Attention of one layer.

    Attributes:
        heads: Query heads H.
        kv_heads: Key heads K.
        width: Of a head, d.
        itemsize: Bytes of a number on the way.
        sum_itemsize: Bytes of a number of the key gradients that travel around a ring.
    """

    heads: int
    kv_heads: int
    width: int
    itemsize: int = 2
    sum_itemsize: int = 4


@dataclass(frozen=True)
class Choice:
    """One way to share a sequence, with what it costs in one layer, forward and backward.

    Attributes:
        ulysses: U.
        ring: R.
        inner: "gather" or "ring".
        order: "zigzag" or "contiguous".
        sent: Most bytes that one process sends.
        sent_far: Most bytes that one process sends to another node.
        held: Most bytes of keys and values that one process holds at a time.
        pairs: Most query-key pairs (times heads) of one process.
        balance: Mean pairs / most pairs: 1 is perfect.
    """

    ulysses: int
    ring: int
    inner: str
    order: str
    sent: int
    sent_far: int
    held: int
    pairs: int
    balance: float


def traffic(layout: Layout, shape: AttentionShape, inner: str) -> tuple[Matrix, Matrix]:
    """Bytes from process to process in one layer: (forward, backward)."""
    return tuple(  # type: ignore[return-value]
        [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]
        for matrices in zip(exchanged(layout, shape), carried(layout, shape, inner), strict=True)
    )


def exchanged(layout: Layout, shape: AttentionShape) -> tuple[Matrix, Matrix]:
    """As `traffic`, of the exchange of heads for tokens (Ulysses) alone."""
    heads = Heads(shape.heads, shape.kv_heads, layout.ulysses)
    forward, backward = _nothing(layout.size), _nothing(layout.size)
    counts, cell = layout.counts(), shape.width * shape.itemsize
    for rank in range(layout.size):
        place, u = divmod(rank, layout.ulysses)
        for other in range(layout.ulysses):
            to = place * layout.ulysses + other
            if to == rank:
                continue
            own_out = heads.queries[u][1] - heads.queries[u][0]
            out = counts[rank] * heads.width(other) * cell + counts[to] * own_out * cell
            forward[rank][to] += out  # q, k, v there and the result of its tokens back
            backward[to][rank] += out  # the same rows the other way
    return forward, backward


def carried(layout: Layout, shape: AttentionShape, inner: str) -> tuple[Matrix, Matrix]:
    """As `traffic`, of keys, values and their gradients between ring places alone."""
    heads = Heads(shape.heads, shape.kv_heads, layout.ulysses)
    forward, backward = _nothing(layout.size), _nothing(layout.size)
    rows = layout.ring_rows
    for u in range(layout.ulysses):
        keys = 2 * shape.width * heads.used(u)
        for place in range(layout.ring):
            rank = place * layout.ulysses + u
            if inner == "gather":
                for other in range(layout.ring):
                    if other != place:
                        size = rows_in(layout.needs[other][place]) * keys * shape.itemsize
                        forward[rank][other * layout.ulysses + u] += size
                        backward[other * layout.ulysses + u][rank] += size
            elif layout.ring > 1:
                to = (place + 1) % layout.ring * layout.ulysses + u
                for hop in range(layout.ring):
                    travelling = rows[(place - hop) % layout.ring] * keys
                    if hop < layout.ring - 1:
                        forward[rank][to] += travelling * shape.itemsize
                        backward[rank][to] += travelling * shape.itemsize
                    backward[rank][to] += travelling * shape.sum_itemsize
    return forward, backward


def _nothing(size: int) -> Matrix:
    return [[0] * size for _ in range(size)]


def held_bytes(layout: Layout, shape: AttentionShape, inner: str) -> int:
    """Most bytes of keys and values of one layer that one process holds at a time."""
    heads, rows = Heads(shape.heads, shape.kv_heads, layout.ulysses), max(layout.ring_rows)
    width = 2 * max(heads.used(u) for u in range(layout.ulysses)) * shape.width * shape.itemsize
    if inner == "gather":
        return max(layout.needed_rows) * width
    return (2 * rows if layout.ring > 1 else rows) * width


def evaluate(layout: Layout, shape: AttentionShape, inner: str, *, node: int = 8) -> Choice:
    """What one way costs.

    Args:
        layout: Who holds what.
        shape: Of the attention.
        inner: "gather" or "ring".
        node: Processes of a node.
    """
    heads = Heads(shape.heads, shape.kv_heads, layout.ulysses)
    forward, backward = traffic(layout, shape, inner)
    total = [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(forward, backward, strict=True)]
    far = [sum(size for to, size in enumerate(row) if to // node != rank // node) for rank, row in enumerate(total)]
    most_heads = max(stop - start for start, stop in heads.queries)
    mean = sum(layout.pairs) * shape.heads / layout.size
    most = max(layout.pairs) * most_heads
    return Choice(
        layout.ulysses, layout.ring, inner, layout.order,
        max(sum(row) for row in total), max(far), held_bytes(layout, shape, inner), most, mean / most,
    )  # fmt: skip


def ways(
    size: int, documents: Sequence[int], shape: AttentionShape, *, order: str = "zigzag", node: int = 8
) -> Iterator[Choice]:
    """Every way to share a sequence between ``size`` processes."""
    for ulysses in range(1, min(size, shape.heads) + 1):
        if size % ulysses:
            continue
        layout = Layout(tuple(documents), ulysses, size // ulysses, order)
        for inner in INNER if layout.ring > 1 else INNER[:1]:
            yield evaluate(layout, shape, inner, node=node)


def choose(
    size: int,
    documents: Sequence[int],
    shape: AttentionShape,
    *,
    order: str = "zigzag",
    node: int = 8,
    far_cost: float = 8.0,
    budget: int | None = None,
    least_balance: float = 0.8,
) -> Choice:
    """The way that sends least.

    Args:
        size: Processes of the sequence.
        documents: Lengths of the documents.
        shape: Of the attention.
        order: "zigzag" or "contiguous".
        node: Processes of a node.
        far_cost: What a byte to another node costs more than one within (400 GB/s NVLink against 50 GB/s InfiniBand).
        budget: Most bytes of keys and values that a process may hold for a layer.
        least_balance: Ways that leave processes idle for more of the time are taken only if there is no other.

    Raises:
        ConfigError: No way keeps within the budget.
    """
    every = list(ways(size, documents, shape, order=order, node=node))
    fitting = [c for c in every if budget is None or c.held <= budget]
    if not fitting:
        least = min(c.held for c in every)
        raise ConfigError(
            f"{sum(documents)} tokens on {size} processes: no way holds less than {least:,} bytes of keys, the budget is "
            f"{budget:,}; use more processes"
        )
    return min(fitting, key=lambda c: (c.balance < least_balance, c.sent + (far_cost - 1) * c.sent_far, c.held))
