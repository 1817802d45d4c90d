"""The cost model of ``vlm plan`` beside what LongVILA publishes (2408.10188; longvila spec §B.4): predicted / published for each point.

Nothing is run. Grades are those of the spec: [P-LV] read in the paper, [S] quoted by others. Where a published point does not say on what it
was measured, the row says what we take. Points that a constant of `vlm.parallel.hardware` was set by say so; the others are a test of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from eval.report import Row, row, write_results
from vlm.errors import ConfigError
from vlm.parallel.cost import estimate, largest
from vlm.parallel.hardware import CONSTANTS, LONGVILA, gpu_named
from vlm.parallel.memory import Job
from vlm.parallel.shapes import TEXTS, Shapes
from vlm.report import print_facts

LOW, HIGH = 0.65, 1.35
K = 1024
LLAMA = Shapes("llama3-8b", TEXTS["llama3-8b"])  # its throughput was measured on text alone
RING = {32: 2.06, 64: 4.40, 128: 8.63, 256: 17.54}  # K tokens: seconds of a step
BOTH = {32: 1.04, 64: 1.08, 128: 2.30, 256: 7.04, 320: 11.12}
LONG, RING_LONG, BOTH_LONG = 578_000, 77.2, 16.9  # tokens, and seconds on 64 GPUs
_32 = "32 GPUs: the quoted set-up of 1 K to 10 K tokens a GPU gives these lengths there"
_RING_64 = (
    f"a token of the published ring takes twice as long on 64 GPUs ({RING_LONG / LONG * 1e6:.0f} µs) as on 32 "
    f"({RING[256] / 256 / K * 1e6:.0f} µs), though a process sends as many bytes for it: something grows with the number of nodes "
    "(shared switches, 128 hops a layer that wait for the slowest of 64) that the model leaves out, and a constant of its own for one "
    "point would say nothing"
)


@dataclass(frozen=True)
class Point:
    """A published figure.

    Attributes:
        name: What it is.
        published: The figure.
        unit: Of it.
        grade: How far the spec trusts it.
        predict: The same from the model.
        taken: What the source leaves open and how we read it.
        sets: The constant that was set by this point, if any.
        reason: Why the model misses it, if it does.
    """

    name: str
    published: float
    unit: str
    grade: str
    predict: Callable[[], float]
    taken: str = ""
    sets: str = ""
    reason: str = ""


def points() -> Iterator[Point]:
    """All published points that the model can say something about."""
    for k, seconds in RING.items():
        yield _step(f"zigzag ring, {k} K tokens", seconds, 32, k * K, 1, taken=_32, sets="ring")
    yield _step("zigzag ring, 578 K tokens", RING_LONG, 64, LONG, 1, reason=_RING_64)
    for k, seconds in BOTH.items():
        yield _step(f"2-D, {k} K tokens", seconds, 32, k * K, 8, taken=_32, sets="link" if k == 32 else "")
    yield _step("2-D, 578 K tokens", BOTH_LONG, 64, LONG, 8)
    text = "over ring-style sequence parallelism"
    taken = "least and most of 1 K to 10 K tokens a GPU on 32 H100"
    yield Point(f"least speed-up {text}", 2.1, "x", "[P-LV]", lambda: min(_speed_ups()), taken)
    yield Point(f"most speed-up {text}", 5.7, "x", "[P-LV]", lambda: max(_speed_ups()), taken)
    longest = "largest length without gradient checkpointing"
    taken = "Llama-3-8B, text alone, 2 M as 2 x 1024 x 1024"
    yield Point(f"{longest}, 256 x A100", 2 * K * K, "tokens", "[P-LV]", lambda: _longest("A100", 256), taken)
    taken = "largest length of the timings"
    yield Point(f"{longest}, 64 x H100", LONG, "tokens", "[S]", lambda: _longest("H100", 64), taken)
    yield Point(f"{longest}, 32 x H100", 320 * K, "tokens", "[S]", lambda: _longest("H100", 32), f"{taken}; {_32}")
    taken = "Ulysses alone: groups of at most 32, the number of query heads"
    yield Point("length, 2-D over Ulysses alone, 256 x A100", 8, "x", "[S]", _longer, taken)
    taken = "96 K tokens; in the pipeline one GPU works at a time"
    yield Point("prefill on 8 x H100 over a pipeline of layers", 8.2, "x", "[S]", _prefill_speed_up, taken)


def rows(limit: int | None = None) -> list[Row]:
    """Predicted / published. A ratio below 1 is held against 0.65, one above against 1.35."""
    return [_row(p) for p in list(points())[:limit]]


def run(*, model: str | None = None, limit: int | None = None, out: Path = Path("docs/results")) -> Path:
    """Compare the cost model with published figures; writes ``plan.json``.

    Args:
        model: None: the published model it is.
        limit: Number of points.
        out: Folder of the results.

    Raises:
        ConfigError: A model is given.
    """
    if model is not None:
        raise ConfigError(f"model={model!r}: this compares published figures of Llama-3-8B and takes no model")
    found = rows(limit)
    command = "vlm eval plan" + (f" --limit {limit}" if limit else "")
    setting = {"constants": asdict(CONSTANTS), "software": asdict(LONGVILA), "band": [LOW, HIGH]}
    path = write_results("plan", found, command=command, seed=0, setting=setting, out_dir=out)
    shown = ("predicted", "published", "grade", "reason")
    print_facts(
        {
            r["name"]: f"{r['value']:.2f}  " + ", ".join(f"{k} {r['setting'][k]}" for k in shown if k in r["setting"])
            for r in found
        }
    )
    return path


def _row(point: Point) -> Row:
    predicted = point.predict()
    ratio = predicted / point.published
    more = {k: v for k in ("taken", "sets") if (v := getattr(point, k))}
    if not LOW <= ratio <= HIGH:
        more["reason"] = point.reason or "not known"
    places = 0 if point.unit == "tokens" else 2
    return row(
        point.name,
        ratio,
        target=LOW if ratio < 1 else HIGH,
        at_least=ratio < 1,
        predicted=f"{predicted:,.{places}f} {point.unit}",
        published=f"{point.published:,.{places}f} {point.unit}",
        grade=point.grade,
        **more,
    )


def _job(gpu: str, gpus: int, length: int, **more: object) -> Job:
    return replace(Job(LLAMA, gpu_named(gpu), gpus, gpus, length, software=LONGVILA), **more)  # type: ignore[arg-type]


def step_seconds(gpus: int, length: int, ulysses: int) -> float:
    """Of a step of the published system on H100: all-to-all within a node of 8 (or not at all), a ring around."""
    job = _job("H100", gpus, length)
    return estimate(job, job.layout(ulysses), "ring").total_seconds


def _step(
    name: str,
    seconds: float,
    gpus: int,
    length: int,
    ulysses: int,
    *,
    taken: str = "",
    sets: str = "",
    reason: str = "",
) -> Point:
    def predict() -> float:
        return step_seconds(gpus, length, ulysses)

    return Point(f"step, {gpus} x H100, {name}", seconds, "s", "[S]", predict, taken, sets, reason)


def _speed_ups() -> list[float]:
    return [step_seconds(32, 32 * k * K, 1) / step_seconds(32, 32 * k * K, 8) for k in range(1, 11)]


def _longest(gpu: str, gpus: int, sp_size: int | None = None) -> int:
    job = largest(_job(gpu, gpus, K, sp_size=sp_size or gpus))
    return 0 if job is None else job.length


def _longer() -> float:
    return _longest("A100", 256) / _longest("A100", 256, sp_size=32)


def _prefill_speed_up() -> float:
    alone, shared = (_job("H100", n, 96 * K, mode="infer", zero=0) for n in (1, 8))
    return estimate(alone, alone.layout(1), "gather").total_seconds / min(
        estimate(shared, layout, inner).total_seconds for layout, inner in shared.ways()
    )
