"""``vlm reproduce PAPER``: small versions of a paper's claims, measured on this machine, beside what the paper says.

A part that is done is on the disk until all are, so an interrupted run goes on where it stood; trainings resume by themselves.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.kept import Kept
from eval.report import Row, commit, row, write_results
from vlm.errors import ConfigError

PAPERS = {"lita": "eval.lita", "longvila": "eval.longvila"}
"""Paper -> module with ``parts(setting)``, and ``draw(path, rows)`` if there is something to see."""


@dataclass(frozen=True)
class Setting:
    """What a run of ``vlm reproduce`` is about.

    Attributes:
        quick: Minutes instead of an hour or more: smaller sizes, and no training.
        work: Where trainings and their results go.
        seed: Of all randomness.
    """

    quick: bool = False
    work: Path = Path("runs/reproduce")
    seed: int = 0


@dataclass(frozen=True)
class Part:
    """One claim, or some that are measured together.

    Attributes:
        name: Of the part.
        measure: Makes its rows.
    """

    name: str
    measure: Callable[[], list[Row]]


def finding(
    claim: str,
    paper: str,
    ours: float,
    unit: str = "",
    target: float | None = None,
    *,
    at_least: bool = True,
    **setting: Any,
) -> Row:
    """One row: what is claimed, what the paper says of it, what we measured.

    Args:
        claim: In one line.
        paper: The paper's figure with its set-up, or "not said".
        ours: Our figure.
        unit: Of it.
        target: From where on our figure supports the claim.
        at_least: Whether larger is better.
        setting: How ours was measured.
    """
    made = row(claim, ours, unit, target, at_least=at_least, **setting)
    return {"claim": made.pop("name"), "paper": paper, "ours": made.pop("value"), **made}


def run(
    paper: str,
    *,
    quick: bool = False,
    out: Path = Path("docs/results"),
    work: Path = Path("runs/reproduce"),
    seed: int = 0,
) -> Path:
    """Measure the claims of a paper and write ``PAPER.json``.

    Args:
        paper: One of `PAPERS`.
        quick: See `Setting`.
        out: Folder of the results.
        work: Folder of trainings.
        seed: Of all randomness.

    Raises:
        ConfigError: There is no such paper.
    """
    if paper not in PAPERS:
        raise ConfigError(f"no paper {paper!r}; there is {', '.join(PAPERS)}")
    from tqdm import tqdm

    module = importlib.import_module(PAPERS[paper])
    parts: list[Part] = module.parts(Setting(quick, work, seed))
    same = {"quick": quick, "seed": seed, "commit": commit()}
    kept = Kept(out / f".{paper}-parts.json", same)
    with tqdm(parts, unit="part") as bar:
        for part in bar:
            bar.set_description(part.name)
            kept(part.name, part.measure)
    rows = [r for part in parts for r in kept.known[part.name]]
    command = f"vlm reproduce {paper}" + (" --quick" if quick else "") + (f" --seed {seed}" if seed else "")
    path = write_results(paper, rows, command=command, seed=seed, setting={"quick": quick}, out_dir=out)
    if hasattr(module, "draw"):
        module.draw(path.with_suffix(".png"), rows)
    kept.drop()
    return path
