"""Needle in a video haystack: hide pictures among many frames, or a sound, and ask about them.

After LongVA's V-NIAH and LongVILA (2408.10188): number of frames x depth, a mean per cell; with the tasks of `eval.niah_tasks`. Two
things are reported side by side, because one hides the other's failures: what the model says by itself (``free``), and whether the
right answer's tokens are each the most likely ones when the answer is forced on it (``forced``, the papers' measure). Options of
multiple-choice needles are rotated, so that a taste for one letter scores chance; every length is also asked without a needle, which
measures that taste, and every needle without a haystack, which measures whether the model can read it at all (ours).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from eval import niah_sets
from eval.haystacks import FootageHaystack, ScenesHaystack, footage
from eval.needles import MODES, Haystack, NeedleModel, NeedleSet
from eval.niah_cells import SCORES, Cell, Marks, cells_in, plot, rows_of
from eval.niah_parts import PATIENCE, Parts, Ranks, Unit
from eval.niah_sets import SoundNeedle
from eval.niah_tasks import TASKS, make_task
from eval.niah_trials import ALONE, NO_NEEDLE, Task
from eval.report import read_results, write_results
from vlm.errors import ConfigError, DataError
from vlm.media import Video

SMALL_EYES = 128
"""Eyes of fewer pixels look for drawn needles in drawn scenes, others for photographs in footage."""

WRITE_SECONDS = 5.0
"""At most so often the results so far are written; what is measured is safe in any case (`eval.niah_parts`)."""

LONGEST = (32, 96)
"""Most tokens of a free answer: drawn, footage and speech, where a list may name much of the haystack before the needle."""

LENGTHS = ("8,16,32,64,128,256", "16,64,256")
"""Default numbers of frames: drawn, footage."""

_SHAPE_TASKS = ("several", "order", "count")  # nano learnt to ask these about shapes


def measure(model: NeedleModel, hay: Video, task: Task, *, depth: float, needle: int, frames: int) -> Cell:
    """The outcomes of one needle in one cell."""
    marks: dict[str, dict[str, str]] = {score: {} for score in SCORES}
    chance: dict[str, list[float]] = {}
    tokens = 0
    for trial in task.trials(hay, depth, needle):
        free = trial.judge(model, model.answer(trial.video, trial.question))
        forced = model.forced_match(trial.video, trial.question, trial.answer)
        for score, right in zip(SCORES, (free, forced), strict=True):
            marks[score][trial.kind] = marks[score].get(trial.kind, "") + str(int(right))
        chance.setdefault(trial.kind, []).append(trial.chance)
        tokens = max(tokens, model.count_tokens(trial.video, trial.question))
    own: list[Marks] = [{kind: (text,) for kind, text in marks[score].items()} for score in SCORES]
    return Cell(frames, depth, own[0], own[1], {k: float(np.mean(c)) for k, c in chance.items()}, tokens)


@dataclass
class Search:
    """One measurement: a grid of cells, each of all needles of a task.

    Attributes:
        model: Who is asked.
        haystack: Where needles are hidden.
        task: What is hidden and asked.
        lengths: Numbers of haystack frames.
        depths: In 0..1.
    """

    model: NeedleModel
    haystack: Haystack
    task: Task
    lengths: Sequence[int]
    depths: Sequence[float]
    _hay: Video | None = None

    @property
    def plan(self) -> list[tuple[int, float]]:
        """(frames, depth) of every cell, length by length, the baseline without a needle before the depths."""
        every = [(n, d) for n in dict.fromkeys(self.lengths) for d in (NO_NEEDLE, *dict.fromkeys(self.depths))]
        return [(1, ALONE), *every] if self.task.alone else every

    @property
    def units(self) -> list[Unit]:
        """(frames, depth, needle) of everything, cell by cell."""
        return [(n, d, i) for n, d in self.plan for i in range(self.task.size)]

    def measure(self, unit: Unit) -> Cell:
        """One needle in one cell.

        Raises:
            DataError: The haystack is too short.
        """
        frames, depth, needle = unit
        if self._hay is None or len(self._hay.frames) != frames:
            self._hay = None  # two haystacks need not be held at once
            self._hay = self.haystack(frames)
            if len(self._hay.frames) != frames:
                found = f"the haystack {self.haystack.name!r} gave {len(self._hay.frames)} frames instead of {frames}"
                self._hay = None
                raise DataError(f"{found}; use a longer video or fewer frames")
        return measure(self.model, self._hay, self.task, depth=depth, needle=needle, frames=frames)

    def joined(self, found: dict[Unit, Cell], known: dict[tuple[int, float], Cell]) -> list[Cell]:
        """The cells of which every needle is there, in the order of the plan."""
        cells = []
        for n, d in self.plan:
            parts = [found.get((n, d, i)) for i in range(self.task.size)]
            whole = [p for p in parts if p is not None]
            if (n, d) in known:
                cells.append(known[n, d])
            elif len(whole) == self.task.size:
                cells.append(sum(whole[1:], whole[0]))
        return cells


def evaluate(
    model: NeedleModel,
    haystack: Haystack,
    task: Task,
    *,
    name: str,
    lengths: Sequence[int],
    depths: Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    seed: int = 0,
    command: str = "vlm eval niah",
    out: Path = Path("docs/results"),
    title: str = "niah",
    fresh: bool = False,
    target: float | None = None,
    ranks: Ranks | None = None,
    patience: float = PATIENCE,
) -> Path:
    """Measure every cell and write ``out/title.json``; a file of the same measurement is continued.

    Several processes share the work if each has its own ``ranks``; the results are those of one process. Rank 0 writes now and then,
    and at the end.

    Args:
        model: Who is asked.
        haystack: Where needles are hidden.
        task: What is hidden and asked.
        name: What the results call the model; two models, or two states of one, must differ in it.
        lengths: Numbers of haystack frames.
        depths: In 0..1.
        seed: Of needles and haystack, and of the bootstrap.
        command: Repeats the measurement.
        out: Folder.
        title: Of the files: ``title.json`` and ``title.png`` (heat maps).
        fresh: Measure every cell again.
        target: Percent that free generation should reach over all cells.
        ranks: This process among others; default: what the environment says.
        patience: Seconds that rank 0 waits for a process that does not run.

    Returns:
        The path of the JSON file.

    Raises:
        DataError: The haystack is too short, or another process stopped.
        ConfigError: The same is being measured by another process, or ``fresh`` is asked of several processes.
    """
    ranks = ranks or Ranks.here()
    if fresh and ranks.world > 1:
        raise ConfigError(
            f"fresh=true is for one process; delete {title}.json and start {ranks.world} processes without it"
        )
    search = Search(model, haystack, task, lengths, depths)
    same = {"model": name, "haystack": haystack.name, **task.facts}
    path = out / f"{title}.json"
    known = {} if fresh else {c.place: c for c in _known_cells(path, same, seed)}

    def write(cells: Sequence[Cell]) -> None:
        setting = {**same, "complete": len(cells) == len(search.plan)}
        rows = rows_of(cells, seed=seed, target=target)
        write_results(title, rows, command=command, seed=seed, setting=setting, out_dir=out)

    digest = hashlib.sha256(json.dumps([same, seed]).encode()).hexdigest()[:12]
    with Parts(out / f".{title}-{digest}.parts", ranks) as parts:
        if fresh:
            parts.clear()
        found = parts.read()
        mine = [u for i, u in enumerate(search.units) if i % ranks.world == ranks.rank]
        todo = [u for u in mine if u[:2] not in known and u not in found]
        written = time.monotonic()
        for unit in tqdm(todo, desc="needle in a haystack", unit="needle", disable=ranks.rank > 0):
            parts.add(unit[2], search.measure(unit))
            if ranks.rank == 0 and time.monotonic() - written > WRITE_SECONDS:
                if cells := search.joined(parts.read(), known):
                    write(cells)
                written = time.monotonic()
        if ranks.rank == 0:
            found = parts.wait(lambda found: len(search.joined(found, known)) == len(search.plan), patience=patience)
            cells = search.joined(found, known)
            write(cells)
            plot(out / f"{title}.png", cells, name)
            parts.remove()
    return path


def _known_cells(path: Path, same: dict[str, Any], seed: int) -> list[Cell]:
    """Cells of an earlier, possibly interrupted, run of the same measurement."""
    if not path.exists():
        return []
    old = read_results(path)
    if {k: v for k, v in (old.get("setting") or {}).items() if k != "complete"} != same or old.get("seed") != seed:
        return []
    return cells_in(old["rows"])


def run(
    *,
    model: str | None = None,
    limit: int | None = None,
    out: Path = Path("docs/results"),
    task: str = "retrieve",
    lengths: str | None = None,
    depths: int = 6,
    mode: str = "insert",
    needles: str | None = None,
    haystack: str | None = None,
    k: int = 3,
    period: int | None = None,
    seed: int = 0,
    fresh: bool = False,
    target: float | None = None,
    tag: str = "",
) -> None:
    """``vlm eval niah``: find what is hidden in a video. Several processes: ``torchrun --nproc_per_node 2 -m eval niah``.

    Args:
        model: Default ``nano``.
        limit: Number of needles; default all.
        out: Folder of ``niah.json`` and ``niah.png``; other tasks than ``retrieve`` and the model ``smol`` have their names in it.
        task: ``retrieve``, ``distract``, ``when``, ``several``, ``order``, ``count``, ``absent`` or ``sound``.
        lengths: Numbers of frames, separated by commas.
        depths: How many depths, spread evenly from 0 to 1.
        mode: ``insert`` or ``replace``.
        needles: ``digits``, ``shapes``, ``photographs``, ``beeps``, ``speech``, or a folder; default: what the model has learnt.
        haystack: ``shapes``, ``digits``, ``footage``, a video file, or a folder of them; default: what fits the needles.
        k: How many needles at once (``several``, ``order``), or at most (``count``).
        period: Frames between look-alikes (``distract``).
        seed: Of the needles and of the generated haystack.
        fresh: Measure again what the results file already has.
        target: Percent that free generation should reach over all cells.
        tag: Ends the names of the files: ``tag=6000`` writes ``niah-6000.json``.
    """
    _check(task, mode, depths, lengths, tag)
    ranks, name = Ranks.here(), model or "nano"
    asked = _load(name, ranks)
    size = int(asked.assistant.processor.pixels["image_size"])
    drawn = size < SMALL_EYES
    asked.max_new_tokens = LONGEST[not drawn]
    lengths = lengths or LENGTHS[not drawn]
    hidden = choose_needles(task, needles, asked, size=size, seed=seed, limit=limit)
    hay = choose_haystack(haystack, hidden, size=size, seed=seed)
    job = make_task(task, hidden, mode=mode, k=k, period=period, seed=seed)
    options = {"task": task, "lengths": lengths, "depths": depths, "mode": mode, "seed": seed}
    given: dict[str, Any] = {
        "needles": needles,
        "haystack": haystack,
        "period": period,
        "target": target,
        "tag": tag or None,
    }
    options |= {key: Path(v).name if isinstance(v, str) else v for key, v in given.items() if v is not None}
    options |= {"k": k} if task in _SHAPE_TASKS else {}
    words = " ".join(f"{key}={value}" for key, value in options.items())
    shown = Path(name).name
    evaluate(
        asked,
        hay,
        job,
        name=f"{shown}, weights {asked.fingerprint()}",
        lengths=numbers_in(lengths),
        depths=np.linspace(0, 1, depths).round(4).tolist(),
        seed=seed,
        command=f"vlm eval niah {words} --model {shown}" + (f" --limit {limit}" if limit else ""),
        out=out,
        title=_title(name, task, tag),
        fresh=fresh,
        target=target,
        ranks=ranks,
    )


def _check(task: str, mode: str, depths: int, lengths: str | None, tag: str) -> None:
    """Refuse options that make no sense before a model is loaded."""
    if task not in TASKS:
        raise ConfigError(f"task={task!r} is not one of {', '.join(TASKS)}")
    if mode not in MODES:
        raise ConfigError(f"mode={mode!r} is not one of {', '.join(MODES)}")
    if depths < 1:
        raise ConfigError(f"depths={depths} must be 1 or more")
    if lengths is not None:
        numbers_in(lengths)
    if not re.fullmatch(r"[\w.-]*", tag):
        raise ConfigError(f"tag={tag!r} ends a file name; it takes letters, digits, '_', '-' and '.'")


def _title(model: str, task: str, tag: str) -> str:
    """Name of the results file."""
    return "-".join(filter(None, ["niah", "smol" * (model == "smol"), task * (task != "retrieve"), tag]))


def _load(name: str, ranks: Ranks) -> Any:
    import torch

    from eval.assistant import AssistantModel
    from vlm.presets import load

    local = os.environ.get("LOCAL_RANK", "0")
    own = torch.cuda.is_available() and ranks.world > 1 and local.isdecimal()
    return AssistantModel(load(name, device=f"cuda:{int(local) % torch.cuda.device_count()}" if own else None))


def choose_needles(
    task: str, wanted: str | None, asked: Any, *, size: int, seed: int, limit: int | None
) -> NeedleSet | list[SoundNeedle]:
    """The needles called ``wanted``, or those that the model has learnt to be asked about.

    Raises:
        ConfigError: A sound for a task of pictures or the other way round, or a model without ears.
    """
    drawn = size < SMALL_EYES
    if task == "sound":
        ears = asked.assistant.processor.ears
        if not ears:
            raise ConfigError(f"task=sound needs a model with ears, and {asked.assistant.name!r} has none")
        kind = wanted or ("speech" if ears["mode"] == "transcript" else "beeps")
        if kind not in ("beeps", "speech"):
            raise ConfigError(f"needles={wanted!r} cannot be heard; task=sound takes beeps or speech")
        rate = int(ears["rate"])
        return (niah_sets.beeps(rate, seed) if kind == "beeps" else niah_sets.sentences(rate))[:limit]
    if wanted in ("beeps", "speech"):
        raise ConfigError(f"needles={wanted} are sounds; use task=sound")
    default = ("shapes" if task in _SHAPE_TASKS else "digits") if drawn else "photographs"
    return niah_sets.by_name(wanted or default, size=size, seed=seed).first(limit)


def choose_haystack(wanted: str | None, needles: Any, *, size: int, seed: int) -> Haystack:
    """The haystack called ``wanted``, or one that shows nothing of the kind of the needles."""
    shapes = isinstance(needles, NeedleSet) and needles.name == "shapes"
    kind = wanted or ("digits" if shapes else "shapes" if size < SMALL_EYES else "footage")
    if kind in ("shapes", "digits"):
        return ScenesHaystack(size, seed, digits=kind == "digits")
    return FootageHaystack(footage(), size, seed) if kind == "footage" else FootageHaystack.of(Path(kind), size, seed)


def numbers_in(text: str) -> list[int]:
    """``8,16`` as numbers of frames.

    Raises:
        ConfigError: It is no such list.
    """
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"lengths={text!r} is not a list of numbers of frames such as 8,16,32") from error
    if min(numbers) < 1:
        raise ConfigError(f"lengths={text!r} must be at least 1 frame each")
    return numbers
