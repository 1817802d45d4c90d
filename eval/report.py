"""Results files ``docs/results/NAME.json`` and what is made of them: Markdown tables and plots.

A file is written by the command that measured it and says with which versions, seed and machine. Whether a target
holds is computed here from the value and the target, never typed.
"""

from __future__ import annotations

import json
import math
import operator
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from vlm.errors import DataError, MissingDependencyError
from vlm.files import write_text

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("vlm", "torch", "transformers", "numpy")
_OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}
_TARGET = re.compile(r"(>=|<=|>|<|==)\s*(-?\d+(?:\.\d+)?(?:e-?\d+)?)")
_SIGNS = {">=": "≥", "<=": "≤", ">": ">", "<": "<", "==": "="}

Row = dict[str, Any]


def row(
    name: str,
    value: float | None,
    unit: str = "",
    target: float | None = None,
    *,
    at_least: bool = True,
    **setting: Any,
) -> Row:
    """One line of a results file.

    Args:
        name: What was measured.
        value: Number, or None if it could not be measured here (``setting`` says why).
        unit: For example ``%``, ``s``, ``tokens/s``.
        target: What it should reach; None for a number without a bar.
        at_least: True if larger is better.
        setting: Anything else a reader needs: sample size, chance level, frames.
    """
    bar = None if target is None else f"{'>=' if at_least else '<='} {target:g}"
    number = None if value is None else float(value)
    return {"name": name, "value": number, "unit": unit, "target": bar, "setting": setting, "holds": holds(number, bar)}


def holds(value: float | None, target: str | None) -> bool | None:
    """Whether ``value`` meets a target such as ``">= 0.85"``; None without a value or a target.

    Raises:
        DataError: The target is not a comparison with a number.
    """
    if value is None or target is None:
        return None
    match = _TARGET.fullmatch(target.strip())
    if match is None:
        raise DataError(f"target {target!r} is not a comparison such as '>= 0.85'")
    return bool(_OPERATORS[match[1]](value, float(match[2])))


def write_results(
    name: str,
    rows: Iterable[Row],
    *,
    command: str,
    seed: int,
    setting: Any = None,
    out_dir: str | Path = "docs/results",
) -> Path:
    """Write ``out_dir/name.json``, whole or not at all.

    Args:
        name: File name without extension.
        rows: From `row`, or dictionaries with name/claim, value/ours, unit, target/paper, setting. ``holds`` is
            computed here, whatever they bring.
        command: The command line that repeats the measurement.
        seed: Of all randomness.
        setting: What holds for all rows.
        out_dir: Folder, made if missing.

    Raises:
        DataError: There is no row, or a row lacks its name, or a number is not finite.
    """
    checked = [_checked(r, name) for r in rows]
    if not checked:
        raise DataError(f"results {name!r} have no rows; a results file needs at least one measurement")
    content = {
        "command": command,
        "versions": versions(),
        "commit": commit(),
        "seed": seed,
        "machine": machine(),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **({} if setting is None else {"setting": setting}),
        "rows": checked,
    }
    path = Path(out_dir) / f"{name}.json"
    try:
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise DataError(f"results {name!r} contain a number that is not finite") from error
    write_text(path, text + "\n")
    return path


def read_results(path: str | Path) -> dict[str, Any]:
    """The content of a results file.

    Raises:
        DataError: It is not one.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a results file: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise DataError(f"{path} has no list of rows")
    return content


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    if found["vlm"] == "not installed":
        from vlm import __version__

        found["vlm"] = __version__
    return found


def commit() -> str | None:
    """Git commit of this checkout, with ``+changes`` if files differ from it; None outside a checkout."""
    if not (ROOT / ".git").exists():
        return None
    head, changes = (
        _git(*words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
    )
    return None if head is None else head + ("+changes" if changes else "")


def machine() -> dict[str, Any]:
    """Kind of machine: processor, cores, memory in GB, accelerator. No name, no path."""
    accelerator = None
    try:
        import torch

        accelerator = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    except ImportError:
        pass
    facts = {"system": platform.system(), "cpu": _cpu_model(), "cores": os.cpu_count(), "memory_gb": _memory_gb()}
    return {**facts, "accelerator": accelerator}


def wilson(successes: int, trials: int, *, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a proportion, in 0..1 (95 % by default); ``(0, 1)`` without trials."""
    if not 0 <= successes <= trials:
        raise DataError(f"{successes} successes of {trials} trials are not possible")
    if trials == 0:
        return 0.0, 1.0
    share, weight = successes / trials, z * z / trials
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return low, 1.0 if successes == trials else min(1.0, centre + half)


def markdown_table(results: str | Path | dict[str, Any], *, only: str | None = None) -> str:
    """A results file as a Markdown table: what, value, target, whether it holds, setting; for claims also what the paper says.

    Args:
        results: Path or content.
        only: Regular expression; rows whose name it does not match are left out.
    """
    content = results if isinstance(results, dict) else read_results(results)
    claims = any("claim" in r for r in content["rows"])
    lines = ["| what | value | target | holds | setting |", "| --- | ---: | ---: | :---: | --- |"]
    if claims:
        lines = ["| claim | paper | ours | target | holds | setting |", "| --- | --- | ---: | ---: | :---: | --- |"]
    for r in content["rows"]:
        name = str(_either(r, "name", "claim"))
        if only is not None and not re.search(only, name):
            continue
        value, target = _either(r, "value", "ours"), _either(r, "target", "paper")
        unit = f" {r['unit']}" if r.get("unit") and value is not None else ""
        mark = {True: "yes", False: "**no**", None: ""}[r.get("holds")]
        cells = [name, _number(value) + unit, _bar(target), mark, _setting(r.get("setting"))]
        if claims:
            cells[1:3] = [str(r.get("paper") or ""), cells[1], _bar(r.get("target"))]
        lines.append("| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |")
    return "\n".join(lines)


def heat_maps(
    path: str | Path, panels: dict[str, Any], *, rows: Sequence[str], columns: Sequence[str], labels: tuple[str, str]
) -> Path:
    """Draw grids of percentages side by side, red (0) to green (100); cells that are NaN stay grey.

    Args:
        path: PNG to write.
        panels: Title -> array ``[len(rows), len(columns)]`` of percent.
        rows: Labels of the vertical axis, from the top.
        columns: Labels of the horizontal axis.
        labels: Names of the vertical and the horizontal axis.
    """
    made = figure(1.5 + (1.6 + 0.62 * len(columns)) * len(panels), 1.6 + 0.42 * len(rows))
    axes = made.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, grid) in zip(axes, panels.items(), strict=True):
        axis.set_facecolor("lightgrey")
        axis.imshow(grid, vmin=0, vmax=100, cmap="RdYlGn", aspect="auto")
        for y, x in ((y, x) for y in range(len(rows)) for x in range(len(columns)) if math.isfinite(grid[y][x])):
            ink = "black" if 15 < grid[y][x] < 85 else "white"
            axis.text(x, y, f"{grid[y][x]:.0f}", ha="center", va="center", fontsize=8, color=ink)
        axis.set(title=title, xlabel=labels[1], ylabel=labels[0], xticks=range(len(columns)), yticks=range(len(rows)))
        axis.set_xticklabels(columns)
        axis.set_yticklabels(rows)
    return save(made, path)


def bar_chart(path: str | Path, bars: Iterable[Row], *, title: str = "", unit: str = "%") -> Path:
    """Draw one bar per row with its 95 % interval, a dashed line at chance and a solid tick at the target.

    Args:
        path: PNG to write.
        bars: Rows; ``setting`` may hold ``chance``, ``low`` and ``high`` in the unit of the value. Rows without a value
            are left out.
    """
    drawn = [r for r in bars if r.get("value") is not None]
    made = figure(1.5 + 1.1 * max(len(drawn), 2), 4.2)
    axis = made.subplots()
    for x, r in enumerate(drawn):
        value, given = r["value"], r.get("setting")
        setting: dict[str, Any] = given if isinstance(given, dict) else {}
        axis.bar(x, value, width=0.6, color="#4878a8" if r.get("holds") is not False else "#d08050")
        if "low" in setting and "high" in setting:
            spread = [[max(0.0, value - setting["low"])], [max(0.0, setting["high"] - value)]]
            axis.errorbar(x, value, yerr=spread, color="black", capsize=4)
        if setting.get("chance") is not None:
            axis.hlines(setting["chance"], x - 0.4, x + 0.4, colors="black", linestyles="dashed")
        bar = _TARGET.fullmatch(str(r.get("target") or ""))
        if bar:
            axis.hlines(float(bar[2]), x - 0.4, x + 0.4, colors="green", linewidth=2)
    axis.set(title=title, ylabel=unit, xticks=range(len(drawn)))
    axis.set_xticklabels([str(_either(r, "name", "claim")) for r in drawn], rotation=30, ha="right")
    return save(made, path)


def _checked(r: Row, name: str) -> Row:
    if _either(r, "name", "claim") is None:
        raise DataError(f"a row of the results {name!r} has neither 'name' nor 'claim': {r}")
    value, target = _either(r, "value", "ours"), _either(r, "target", "paper")
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"row {_either(r, 'name', 'claim')!r} of the results {name!r} has the value {value}")
    comparable = isinstance(target, str) and _TARGET.fullmatch(target.strip()) is not None
    return {**r, "holds": holds(value, target) if comparable else None}


def _either(r: Row, first: str, second: str) -> Any:
    return r[first] if r.get(first) is not None else r.get(second)


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 10_000 else f"{value:,.0f}"


def _bar(target: Any) -> str:
    match = _TARGET.fullmatch(str(target).strip()) if target is not None else None
    return f"{_SIGNS[match[1]]} {match[2]}" if match else "" if target is None else str(target)


def _setting(setting: Any) -> str:
    if isinstance(setting, dict):
        return ", ".join(f"{k.replace('_', ' ')} {_number(v)}" for k, v in setting.items())
    return "" if setting is None else str(setting)


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, OSError, ValueError):
        return None


def figure(width: float, height: float) -> Any:
    """A matplotlib figure of that many inches, without a window.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "eval", "drawing a plot") from error
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def save(figure: Any, path: str | Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    figure.savefig(partial, format="png", dpi=120)
    partial.replace(path)
    return path
