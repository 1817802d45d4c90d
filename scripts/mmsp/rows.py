"""Findings become rows of the results file: first the bars, then every system, then those that cannot run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from eval.report import Row, row
from scripts.mmsp.rivals import DEEPSPEED_HF, DEEPSPEED_QKV

Found = dict[str, Any]
Case = tuple[int, int, int]  # processes, query heads, key heads
RESHARD_BARS = {
    ("contiguous", 2): 0.15,
    ("contiguous", 4): 0.15,
    ("zigzag", 2): 0.60,
    ("zigzag", 4): 0.30,
}


@dataclass
class Findings:
    """All that was measured.

    Attributes:
        wire: Bytes were read from the wire, too.
        bytes: Case -> system -> findings.
        units: Case -> bytes of U.
        cost: Processes -> system -> findings.
        reshard: Processes -> "order way" -> findings.
        absent: Rival -> what it said.
    """

    wire: bool
    bytes: dict[Case, Found] = field(default_factory=dict)
    units: dict[Case, int] = field(default_factory=dict)
    cost: dict[int, Found] = field(default_factory=dict)
    reshard: dict[int, Found] = field(default_factory=dict)
    absent: dict[str, str | None] = field(default_factory=dict)

    def sent(self, found: Found) -> float:
        """Bytes by the better witness: the wire where it was read."""
        return float(found["wire"] if self.wire else found["counted"])


def rows_of(found: Findings) -> list[Row]:
    """Every row, in the order of the table."""
    every = [_byte_bars(found), _checks(found), _reshard_bars(found), _cost_bars(found)]
    every += [_byte_rows(found), _cost_rows(found), _absent_rows(found)]
    return [r for rows in every for r in rows]


def planned(systems: Found) -> tuple[str, Found]:
    """The way of ours that the planner picked."""
    return next((name, one) for name, one in systems.items() if one.get("about", {}).get("planned"))


# -- bars --------------------------------------------------------------------------------------------------------------


def _byte_bars(found: Findings) -> Iterator[Row]:
    where = "on the wire" if found.wire else "counted inside"
    for (world, heads, kv), systems in found.bytes.items():
        if heads == kv:
            bar: float | None = 1.0
        elif (heads, kv) == (12, 2) and world in (2, 4):
            bar = 0.5
        else:
            continue
        name = f"bytes of a layer {where}, ours / DeepSpeed, {heads}/{kv} heads, P = {world}"
        label, mine = planned(systems)
        theirs, other = systems[DEEPSPEED_HF], systems[DEEPSPEED_QKV]
        if "refused" in theirs:
            yield row(name, None, "×", bar, at_least=False, reason=theirs["refused"])
            continue
        ours, unit = found.sent(mine["both"]), found.units[world, heads, kv]
        setting: dict[str, Any] = {"way": label.removeprefix("ours, ")}
        setting |= {"ours_U": ours / unit, "DeepSpeed_U": found.sent(theirs["both"]) / unit}
        if "refused" not in other:
            setting["over_DistributedAttention"] = ours / found.sent(other["both"])
        yield row(name, ours / found.sent(theirs["both"]), "×", bar, at_least=False, **setting)


def _checks(found: Findings) -> Iterator[Row]:
    ran = [(case, name, one) for case, systems in found.bytes.items() for name, one in systems.items() if "both" in one]
    for who, mine in (("ours", True), ("rivals", False)):
        chosen = [r for r in ran if r[1].startswith("ours") == mine]
        if not chosen:
            continue
        off = [(abs(one[k]["counted"] / one["formula"][i] - 1), c, n) for c, n, one in chosen for i, k in _PASSES]
        yield row(
            f"bytes counted / formula − 1, worst of {who}", 100 * max(off)[0], "%", 2, at_least=False, **_at(max(off))
        )
    if found.wire:
        apart = [(abs(one["both"]["wire"] / one["both"]["counted"] - 1), c, n) for c, n, one in ran]
        apart += [
            (abs(one["wire"] / one["counted"] - 1), (world, 0, 0), f"re-shard {name}")
            for world, ways in found.reshard.items()
            for name, one in ways.items()
        ]
        yield row(
            "bytes on the wire / counted − 1, worst of all",
            100 * max(apart)[0],
            "%",
            7,
            at_least=False,
            **_at(max(apart)),
        )
    for key, what in (("logit_error", "logits"), ("gradient_error", "gradients")):
        worst = max((one[key], c, n) for c, n, one in ran if n.startswith("ours"))
        about = {
            **_at(worst),
            "rivals_worst": max((one[key] for _, n, one in ran if not n.startswith("ours")), default=None),
        }
        yield row(
            f"largest difference of {what} to one process, worst of ours", worst[0], "", 1e-5, at_least=False, **about
        )


_PASSES = ((0, "forward"), (1, "both"))


def _at(worst: tuple[float, Case, str]) -> dict[str, Any]:
    (world, heads, kv), name = worst[1], worst[2]
    return {"at": f"{name}, P = {world}" + (f", {heads}/{kv} heads" if heads else "")}


def _reshard_bars(found: Findings) -> Iterator[Row]:
    for world, ways in found.reshard.items():
        for order in ("contiguous", "zigzag"):
            ours, theirs = ways[f"{order} ours"], ways[f"{order} all-reduce"]
            bar = RESHARD_BARS.get((order, world))
            setting = {
                "over_least_possible": ours["counted"] / ours["least"],
                "gradient_off_ours": f"{ours['gradient_error']:.0e}",
                "gradient_off_all_reduce": f"{100 * theirs['gradient_error']:.0f} %",
            }
            name = f"re-shard to {order} tokens, bytes, ours / all-reduce pattern, P = {world}"
            yield row(name, found.sent(ours) / found.sent(theirs), "×", bar, at_least=False, **setting)


def _cost_bars(found: Findings) -> Iterator[Row]:
    for world, systems in found.cost.items():
        label, mine = planned(systems)
        theirs = systems[DEEPSPEED_HF]
        about: dict[str, Any] = {"way": label.removeprefix("ours, ")}
        for what in ("saved activations per process", "CPU seconds of a step"):
            name = f"{what}, ours / DeepSpeed, P = {world}"
            if "refused" in theirs:
                yield row(name, None, "×", 1.0, at_least=False, reason=theirs["refused"])
            elif what.startswith("saved"):
                yield row(name, mine["saved"] / theirs["saved"], "×", 1.0, at_least=False, **about)
            else:
                ratio, spread = against(mine, theirs)
                yield row(name, ratio, "×", 1.0, at_least=False, **about, **spread)


def against(mine: Found, theirs: Found) -> tuple[float, dict[str, Any]]:
    """Median of the ratios of interleaved steps, and their spread."""
    ratios = [a / b for a, b in zip(mine["seconds"], theirs["seconds"], strict=True)]
    return statistics.median(ratios), {"least": min(ratios), "largest": max(ratios), "pairs": len(ratios)}


# -- every system ------------------------------------------------------------------------------------------------------


def _byte_rows(found: Findings) -> Iterator[Row]:
    for (world, heads, kv), systems in found.bytes.items():
        unit = found.units[world, heads, kv]
        for name, one in systems.items():
            title = f"P = {world}, {heads}/{kv} heads, {name}"
            if "refused" in one:
                yield row(title, None, "U", says=one["refused"])
                continue
            setting: dict[str, Any] = {"forward": found.sent(one["forward"]) / unit}
            if found.wire:
                setting |= {
                    "counted": one["both"]["counted"] / unit,
                    "forward_counted": one["forward"]["counted"] / unit,
                }
            setting |= {"formula": one["formula"][1] / unit, "forward_formula": one["formula"][0] / unit}
            setting |= {"logits_off": f"{one['logit_error']:.0e}", "gradients_off": f"{one['gradient_error']:.0e}"}
            yield row(title, found.sent(one["both"]) / unit, "U", **setting, **one["about"])


def _cost_rows(found: Findings) -> Iterator[Row]:
    for world, systems in found.cost.items():
        alone = systems["one process"]
        for name, one in systems.items():
            title = f"P = {world}, step, {name}"
            if "refused" in one:
                yield row(title, None, "CPU s", says=one["refused"])
                continue
            ratio, _ = against(one, alone)
            setting = {"saved_MB": one["saved"] / 1e6, "saved_over_one_process": one["saved"] / alone["saved"]}
            yield row(title, one["median"], "CPU s", over_one_process=ratio, **setting, **one["about"])


def _absent_rows(found: Findings) -> Iterator[Row]:
    for name, said in found.absent.items():
        yield row(f"not here: {name}", None, says=said or "ran after all; compare it")
