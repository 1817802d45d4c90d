"""Needle in a video haystack: hide one picture among many frames and ask about it.

After LongVA's V-NIAH and LongVILA (2408.10188): number of frames x depth, a mean per cell. Two things are reported
side by side, because one hides the other's failures: what the model says by itself (``free``), and whether the right
answer's tokens are each the most likely ones when the answer is forced on it (``forced``, the papers' measure). Options
of multiple-choice needles are rotated, so that a taste for one letter scores chance, and every length is also asked
without a needle, which measures that taste (ours).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.needles import Haystack, Needle, NeedleModel, guess_chance, insert_needle, is_right, rotations
from eval.report import Row, heat_maps, read_results, row, wilson, write_results
from vlm.errors import ConfigError, DataError
from vlm.media import Video

NO_NEEDLE = -1.0
_SCORES = ("free", "forced")


@dataclass(frozen=True)
class Cell:
    """Counts of one (number of frames, depth); depth `NO_NEEDLE` is the baseline without a needle."""

    frames: int
    depth: float
    trials: int
    free: int
    forced: int
    tokens: int

    @property
    def label(self) -> str:
        return f"{self.frames} frames, " + ("no needle" if self.depth == NO_NEEDLE else f"depth {self.depth:.2f}")


def search(
    model: NeedleModel,
    haystack: Haystack,
    needles: Sequence[Needle],
    *,
    lengths: Sequence[int],
    depths: Sequence[float],
    mode: str = "insert",
    known: Sequence[Cell] = (),
) -> Iterator[Cell]:
    """Measure cell after cell, length by length: the baseline without a needle first, then every depth.

    Args:
        model: Who is asked.
        haystack: Where needles are hidden.
        needles: What is hidden, one at a time.
        lengths: Numbers of haystack frames.
        depths: In 0..1.
        mode: See `insert_needle`.
        known: Cells that need not be measured again; they are yielded as they are.
    """
    done = {(c.frames, c.depth): c for c in known}
    video: Video | None = None
    for frames, depth in tqdm(_plan(lengths, depths), desc="needle in a haystack", unit="cell"):
        if (frames, depth) in done:
            yield done[frames, depth]
            continue
        if video is None or len(video.frames) != frames:
            video = haystack(frames)
            if len(video.frames) != frames:
                found = f"the haystack {haystack.name!r} gave {len(video.frames)} frames instead of {frames}"
                raise DataError(f"{found}; use a longer video or fewer frames")
        yield _measure(model, video, needles, frames=frames, depth=depth, mode=mode)


def evaluate(
    model: NeedleModel,
    haystack: Haystack,
    needles: Sequence[Needle],
    *,
    name: str,
    lengths: Sequence[int],
    depths: Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    mode: str = "insert",
    seed: int = 0,
    command: str = "vlm eval niah",
    out: Path = Path("docs/results"),
    title: str = "niah",
    fresh: bool = False,
) -> Path:
    """Measure every cell and write ``out/niah.json`` after each; a file of the same measurement is continued.

    Args:
        model: Who is asked.
        haystack: Where needles are hidden.
        needles: What is hidden, one at a time.
        name: What the results call the model; two models, or two states of one, must differ in it.
        lengths: Numbers of haystack frames.
        depths: In 0..1.
        mode: See `insert_needle`.
        seed: Of needles and haystack.
        command: Repeats the measurement.
        out: Folder.
        title: Of the files: ``title.json`` and ``title.png`` (heat maps).
        fresh: Measure every cell again.

    Returns:
        The path of the JSON file.
    """
    if not needles:
        raise DataError("no needles to hide; give at least one")
    needle_facts = f"{len(needles)}, sha256 {_digest(needles)[:16]}"
    same = {"model": name, "haystack": haystack.name, "mode": mode, "needles": needle_facts}
    path, plan = out / f"{title}.json", _plan(lengths, depths)
    known = [] if fresh else _known_cells(path, same, seed)
    cells = {(c.frames, c.depth): c for c in known if (c.frames, c.depth) in plan}
    for cell in search(model, haystack, needles, lengths=lengths, depths=depths, mode=mode, known=known):
        cells[cell.frames, cell.depth] = cell
        done = [cells[p] for p in plan if p in cells]
        rows = [*_summary(done, guess_chance(needles)), *(r for c in done for r in _cell_rows(c))]
        setting = {**same, "complete": len(done) == len(plan)}
        write_results(title, rows, command=command, seed=seed, setting=setting, out_dir=out)
    _plot(out / f"{title}.png", [cells[p] for p in plan], name)
    return path


def run(
    *,
    model: str | None = None,
    limit: int | None = None,
    out: Path = Path("docs/results"),
    lengths: str = "8,16,32,64,128,256",
    depths: int = 6,
    mode: str = "insert",
    haystack: str | None = None,
    seed: int = 0,
    fresh: bool = False,
) -> None:
    """``vlm eval niah``: digits hidden in a video.

    Args:
        model: Default ``nano``.
        limit: Number of needles; default all.
        out: Folder of ``niah.json`` and ``niah.png``.
        lengths: Numbers of frames, separated by commas.
        depths: How many depths, spread evenly from 0 to 1.
        mode: ``insert`` or ``replace``.
        haystack: A video file; default: shapes in motion.
        seed: Of the needles and of the generated haystack.
        fresh: Measure again what the results file already has.
    """
    if depths < 1:
        raise ConfigError(f"depths={depths} must be 1 or more")
    from eval.assistant import AssistantModel
    from eval.haystacks import FileHaystack, ShapesHaystack, digit_needles
    from vlm.presets import load

    name = model or "nano"
    asked = AssistantModel(load(name))
    size = int(asked.assistant.processor.pixels["image_size"])
    hay: Haystack = FileHaystack(Path(haystack), size) if haystack else ShapesHaystack(size, seed)
    command = f"vlm eval niah lengths={lengths} depths={depths} mode={mode} seed={seed} --model {Path(name).name}"
    command += f" haystack={Path(haystack).name}" if haystack else ""
    evaluate(
        asked,
        hay,
        digit_needles(size=size, seed=seed)[:limit],
        name=f"{Path(name).name}, weights {asked.fingerprint()}",
        lengths=_numbers(lengths),
        depths=np.linspace(0, 1, depths).round(4).tolist(),
        mode=mode,
        seed=seed,
        command=command + (f" --limit {limit}" if limit else ""),
        out=out,
        fresh=fresh,
    )


def _plan(lengths: Sequence[int], depths: Sequence[float]) -> list[tuple[int, float]]:
    return [(n, d) for n in dict.fromkeys(lengths) for d in (NO_NEEDLE, *dict.fromkeys(depths))]


def _measure(
    model: NeedleModel, hay: Video, needles: Sequence[Needle], *, frames: int, depth: float, mode: str
) -> Cell:
    trials = free = forced = tokens = 0
    for needle in needles:
        video = hay if depth == NO_NEEDLE else insert_needle(hay, needle.image, depth, mode=mode)[0]
        wrong = [n.answer for n in needles] if needle.options is None else []
        for question, answer in rotations(needle):
            trials += 1
            free += is_right(model.answer(video, question), answer, wrong)
            forced += model.forced_match(video, question, answer)
            tokens = max(tokens, model.count_tokens(video, question))
    return Cell(frames, depth, trials, free, forced, tokens)


def _cell_rows(cell: Cell) -> list[Row]:
    rows = []
    for score in _SCORES:
        right = getattr(cell, score)
        low, high = (round(100 * bound, 1) for bound in wilson(right, cell.trials))
        setting: dict[str, Any] = {"frames": cell.frames, "depth": cell.depth, "right": right, "trials": cell.trials}
        setting |= {"low": low, "high": high, "tokens": cell.tokens}
        rows.append(row(f"{score}: {cell.label}", 100 * right / cell.trials, "%", **setting))
    return rows


def _summary(cells: Sequence[Cell], chance: float) -> list[Row]:
    rows = []
    for score in _SCORES:
        for label, chosen in (
            ("all cells", [c for c in cells if c.depth != NO_NEEDLE]),
            ("depth 1.00, the needle is the last frame", [c for c in cells if c.depth == 1.0]),
            ("no needle", [c for c in cells if c.depth == NO_NEEDLE]),
        ):
            right, trials = sum(getattr(c, score) for c in chosen), sum(c.trials for c in chosen)
            if trials:
                low, high = (round(100 * bound, 1) for bound in wilson(right, trials))
                setting: dict[str, Any] = {"right": right, "trials": trials, "low": low, "high": high}
                rows.append(row(f"{score}: {label}", 100 * right / trials, "%", **setting))
    return [*rows, row("chance: guessing among the answers", 100 * chance, "%")]


def _known_cells(path: Path, same: dict[str, Any], seed: int) -> list[Cell]:
    """Cells of an earlier, possibly interrupted, run of the same measurement."""
    if not path.exists():
        return []
    old = read_results(path)
    if {k: v for k, v in (old.get("setting") or {}).items() if k != "complete"} != same or old.get("seed") != seed:
        return []
    found: dict[tuple[int, float], dict[str, Any]] = {}
    for r in old["rows"]:
        setting = r.get("setting") or {}
        if "depth" in setting:
            counts = found.setdefault((setting["frames"], setting["depth"]), {})
            counts |= {k: setting[k] for k in ("trials", "tokens")}
            counts[r["name"].split(":")[0]] = setting["right"]
    return [Cell(frames=f, depth=d, **counts) for (f, d), counts in found.items()]


def _plot(path: Path, cells: Sequence[Cell], name: str) -> None:
    lengths = list(dict.fromkeys(c.frames for c in cells))
    depths = list(dict.fromkeys(c.depth for c in cells if c.depth != NO_NEEDLE))
    share = {(c.depth, c.frames): c for c in cells}
    panels = {}
    for score, title in zip(_SCORES, ("free generation", "teacher forcing"), strict=True):
        panels[f"{name}, {title} (%)"] = [
            [100 * getattr(share[d, n], score) / share[d, n].trials if (d, n) in share else math.nan for n in lengths]
            for d in depths
        ]
    labels = ("depth of the needle", "frames")
    heat_maps(path, panels, rows=[f"{d:.2f}" for d in depths], columns=[str(n) for n in lengths], labels=labels)


def _digest(needles: Sequence[Needle]) -> str:
    total = hashlib.sha256()
    for n in needles:
        total.update(np.ascontiguousarray(n.image).tobytes())
        total.update(json.dumps([n.image.shape, n.question, n.answer, n.options]).encode())
    return total.hexdigest()


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"lengths={text!r} is not a list of numbers of frames such as 8,16,32") from error
    if not numbers or min(numbers) < 1:
        raise ConfigError(f"lengths={text!r} must be at least 1 frame each")
    return numbers
