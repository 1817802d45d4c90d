"""`Cell`: what was right at one number of frames and one depth, needle by needle; its rows in a results file; intervals; heat maps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.niah_trials import ALONE, NO_NEEDLE
from eval.report import Row, heat_maps, row, wilson

SCORES = ("free", "forced")
DRAWS = 2000
_LEVEL = 95.0

Marks = dict[str, tuple[str, ...]]
"""Kind of trial -> for each needle its trials, "1" right and "0" wrong, "" where it has none of the kind."""


@dataclass(frozen=True)
class Cell:
    """Results of one (number of frames, depth).

    Attributes:
        frames: Of the haystack.
        depth: 0..1, or `NO_NEEDLE` or `ALONE`.
        free: Judged free generation.
        forced: Teacher forcing of the same trials.
        chance: Expected score of guessing per kind (0..1).
        tokens: Longest prompt.
    """

    frames: int
    depth: float
    free: Marks
    forced: Marks
    chance: dict[str, float]
    tokens: int

    @property
    def place(self) -> tuple[int, float]:
        """What tells it from other cells."""
        return self.frames, self.depth

    @property
    def label(self) -> str:
        """For row names."""
        if self.depth == ALONE:
            return "needle alone"
        return f"{self.frames} frames, " + ("no needle" if self.depth == NO_NEEDLE else f"depth {self.depth:.2f}")

    def count(self, score: str, kind: str | None = None) -> tuple[int, int]:
        """(right, trials) of one kind, or of all."""
        marks: Marks = getattr(self, score)
        text = "".join("".join(needles) for k, needles in marks.items() if kind in (None, k))
        return text.count("1"), len(text)

    def __add__(self, other: Cell) -> Cell:
        """This cell with the next needles of the same place."""
        kinds = list(dict.fromkeys([*self.free, *other.free]))

        def joined(score: str) -> Marks:
            first, second = getattr(self, score), getattr(other, score)
            return {k: first.get(k, ("",) * _needles(self)) + second.get(k, ("",) * _needles(other)) for k in kinds}

        # what guessing scores is the same for all needles, or the mean of what it is for each
        share = _needles(self) / (_needles(self) + _needles(other))
        chance = {**self.chance, **other.chance}
        for kind in set(self.chance) & set(other.chance):
            chance[kind] = share * self.chance[kind] + (1 - share) * other.chance[kind]
        tokens = max(self.tokens, other.tokens)
        return Cell(self.frames, self.depth, joined("free"), joined("forced"), chance, tokens)

    def to_json(self) -> dict[str, Any]:
        """For a file; `from_json` gives the same cell back."""
        return {**self.facts("free"), "forced": _packed(self.forced), "tokens": self.tokens}

    def facts(self, score: str) -> dict[str, Any]:
        """What a row of the results says of one score."""
        marks = _packed(getattr(self, score))
        return {"frames": self.frames, "depth": self.depth, score: marks, "chance": self.chance}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Cell:
        """Raises KeyError, TypeError or ValueError if it is not one."""
        free, forced = ({k: tuple(_unpacked(v)) for k, v in content[score].items()} for score in SCORES)
        chance = {str(k): float(c) for k, c in content["chance"].items()}
        return cls(int(content["frames"]), float(content["depth"]), free, forced, chance, int(content["tokens"]))


def _needles(cell: Cell) -> int:
    return max(len(needles) for needles in cell.free.values())


def _packed(marks: Marks) -> dict[str, str]:
    return {kind: " ".join(m or "-" for m in needles) for kind, needles in marks.items()}


def _unpacked(text: str) -> list[str]:
    needles = ["" if m == "-" else m for m in text.split(" ")]
    if any(set(m) - {"0", "1"} for m in needles):
        raise ValueError(f"{text!r} is not a list of outcomes")
    return needles


def bootstrap(right: np.ndarray, trials: np.ndarray, *, seed: int = 0, draws: int = DRAWS) -> tuple[float, float]:
    """Percentile bootstrap interval (95 %) of a share, in 0..1.

    Args:
        right: ``[N]`` right trials of each needle; needles are what is drawn again, because one that a model cannot read is wrong in
            every cell and its trials are no independent evidence.
        trials: ``[N]`` trials of each needle.
        seed: Of the draws.
        draws: How many.
    """
    picks = np.random.default_rng(seed).integers(0, len(right), (draws, len(right)))
    shares = right[picks].sum(1) / np.maximum(trials[picks].sum(1), 1)
    low, high = np.percentile(shares, [(100 - _LEVEL) / 2, (100 + _LEVEL) / 2])
    return float(low), float(high)


def interval(cells: Sequence[Cell], score: str, kind: str | None, seed: int) -> dict[str, Any]:
    """Bounds in percent: of one cell by Wilson's formula, of several by `bootstrap` over needles.

    A single cell has few trials, all of them often right, and drawing ten right ones again gives ten right ones: the bootstrap would
    be sure. Wilson's bounds are not; they also stand in where the needles of several cells are all alike.
    """
    right, trials = totals(cells, score, kind)
    if len(cells) > 1:
        own = _by_needle(cells, score, kind)
        hits, asked = (np.array([count(text) for text in own]) for count in (lambda t: t.count("1"), len))
        low, high = bootstrap(hits, asked, seed=seed)
        if low < high:
            return {"low": round(100 * low, 1), "high": round(100 * high, 1), "interval": "bootstrap over needles"}
    low, high = wilson(right, trials)
    return {"low": round(100 * low, 1), "high": round(100 * high, 1)}


def _by_needle(cells: Sequence[Cell], score: str, kind: str | None) -> list[str]:
    """All outcomes of each needle."""
    own = [""] * max(_needles(c) for c in cells)
    for marks in (getattr(c, score) for c in cells):
        for needles in (needles for k, needles in marks.items() if kind in (None, k)):
            own = [text + more for text, more in zip(own, needles, strict=True)]
    return own


def totals(cells: Iterable[Cell], score: str, kind: str | None = None) -> tuple[int, int]:
    """(right, trials) of all cells."""
    counts = [c.count(score, kind) for c in cells]
    return sum(right for right, _ in counts), sum(trials for _, trials in counts)


def rows_of(cells: Sequence[Cell], *, seed: int, target: float | None = None) -> list[Row]:
    """All rows of a results file: summaries, chance, then two rows per cell.

    Args:
        cells: What was measured.
        seed: Of the bootstrap.
        target: Percent that free generation should reach over all cells.
    """
    rows: list[Row] = []
    for score in SCORES:
        bar = target if score == "free" else None
        for label, chosen, kind in _groups(cells):
            right, trials = totals(chosen, score, kind)
            if trials:
                about = {"right": right, "trials": trials, **interval(chosen, score, kind, seed)}
                goal = bar if label == "all cells" else None
                rows.append(row(f"{score}: {label}", 100 * right / trials, "%", goal, **about))
        rows += _false_alarms(cells, score)
    rows += _chance(cells)
    return rows + [_cell_row(c, score) for c in cells for score in SCORES]


def _groups(cells: Sequence[Cell]) -> list[tuple[str, list[Cell], str | None]]:
    """(label, cells, kind) of every summary."""
    inside = [c for c in cells if c.depth >= 0]
    kinds = list(dict.fromkeys(k for c in inside for k in c.free))
    groups: list[tuple[str, list[Cell], str | None]] = [("all cells", inside, None)]
    if len(kinds) > 1:
        groups += [(f"all cells, {kind}", inside, kind) for kind in kinds]
    groups.append(("depth 1.00, the needle is the last frame", [c for c in inside if c.depth == 1.0], None))
    for frames in dict.fromkeys(c.frames for c in inside):
        groups.append((f"{frames} frames", [c for c in inside if c.frames == frames], None))
    return [*groups, ("no needle", [c for c in cells if c.depth == NO_NEEDLE], None)]


def _false_alarms(cells: Sequence[Cell], score: str) -> list[Row]:
    """How often a needle is reported that is not there; only where the absent one was asked about."""
    asked = [c for c in cells if "absent" in c.free and c.depth != ALONE]
    right, trials = totals(asked, score, "absent")
    if not trials:
        return []
    low, high = wilson(trials - right, trials)
    about = {"wrong": trials - right, "trials": trials, "low": round(100 * low, 1), "high": round(100 * high, 1)}
    return [row(f"{score}: false alarms", 100 * (trials - right) / trials, "%", at_least=False, **about)]


def _chance(cells: Sequence[Cell]) -> list[Row]:
    """What guessing scores: the mean over the cells with a needle, for each kind of trial."""
    inside = [c for c in cells if c.depth >= 0] or list(cells)
    kinds = list(dict.fromkeys(k for c in inside for k in c.chance))
    rows = []
    for kind in kinds:
        value = float(np.mean([c.chance[kind] for c in inside if kind in c.chance]))
        label = "guessing among the answers" if len(kinds) == 1 else f"guessing, {kind}"
        rows.append(row(f"chance: {label}", 100 * value, "%"))
    return rows


def _cell_row(cell: Cell, score: str) -> Row:
    right, trials = cell.count(score)
    about = {"right": right, "trials": trials, **interval([cell], score, None, 0), "tokens": cell.tokens}
    return row(f"{score}: {cell.label}", 100 * right / trials, "%", **about, **cell.facts(score))


def cells_in(rows: Sequence[Row]) -> list[Cell]:
    """The cells that `rows_of` wrote into a results file; what cannot be read is left out and measured again."""
    found: dict[tuple[int, float], dict[str, Any]] = {}
    for r in rows:
        setting = r.get("setting") or {}
        if "depth" in setting and "frames" in setting:
            found.setdefault((setting["frames"], setting["depth"]), {}).update(setting)
    cells = []
    for content in found.values():
        try:
            cells.append(Cell.from_json(content))
        except (KeyError, TypeError, ValueError):
            continue
    return cells


def plot(path: Path, cells: Sequence[Cell], name: str) -> None:
    """Heat maps depth by frames, one for each score (and kind of trial, if there are several)."""
    inside = {c.place: c for c in cells if c.depth >= 0}
    lengths = list(dict.fromkeys(n for n, _ in inside))
    depths = list(dict.fromkeys(d for _, d in inside))
    kinds = list(dict.fromkeys(k for c in inside.values() for k in c.free))
    panels = {}
    for score, title in zip(SCORES, ("free generation", "teacher forcing"), strict=True):
        for kind in kinds if len(kinds) > 1 else [None]:
            label = f"{name}, {title}" + (f", {kind}" if kind else "") + " (%)"
            panels[label] = [[_share(inside.get((n, d)), score, kind) for n in lengths] for d in depths]
    labels = ("depth of the needle", "frames")
    heat_maps(path, panels, rows=[f"{d:.2f}" for d in depths], columns=[str(n) for n in lengths], labels=labels)


def _share(cell: Cell | None, score: str, kind: str | None) -> float:
    right, trials = (0, 0) if cell is None else cell.count(score, kind)
    return 100 * right / trials if trials else math.nan
