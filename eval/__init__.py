"""Evaluations: ``vlm eval TASK`` calls ``eval.TASK.run`` and writes JSON and plots through `eval.report`."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args, get_type_hints

from vlm.errors import ConfigError

TASKS = ("basics", "shapes", "niah", "grounding", "plan")


def run_task(task: str, *, model: str | None, limit: int | None, out: Path, options: list[str]) -> None:
    """Run one evaluation.

    Args:
        task: One of `TASKS`; the module ``eval.<task>`` has a function ``run(*, model, limit, out, ...)``.
        model: ``smol``, ``nano``, a folder or a hub id; None for the one the evaluation is made for.
        limit: Fewer items, for a quick look.
        out: Folder for the JSON and the plots.
        options: ``key=value`` for further keyword arguments of that function.

    Raises:
        ConfigError: Unknown task or option, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit} must be 1 or more, or left out")
    known = [name for name in TASKS if find_spec(f"eval.{name}")]
    if task not in known:
        raise ConfigError(f"evaluation {task!r} is not one of {', '.join(known)}")
    run = import_module(f"eval.{task}").run
    run(model=model, limit=limit, out=out, **_typed_options(run, task, options))


def _typed_options(run: Callable[..., Any], task: str, options: list[str]) -> dict[str, Any]:
    hints = get_type_hints(run)
    allowed = [p for p in inspect.signature(run).parameters if p not in ("model", "limit", "out")]
    values: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or key not in allowed:
            raise ConfigError(
                f"{option!r} is not key=value with a key that {task!r} knows: {', '.join(allowed) or 'none'}"
            )
        values[key] = _convert(text, hints.get(key, str), option)
    return values


def _convert(text: str, hint: Any, option: str) -> Any:
    if isinstance(hint, types.UnionType):
        if text.lower() == "none":
            return None
        hint = next(h for h in get_args(hint) if h is not type(None))
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{option!r}: give true or false")
        return text.lower() == "true"
    try:
        return hint(text)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{option!r}: {text!r} is not a {getattr(hint, '__name__', hint)}") from error
