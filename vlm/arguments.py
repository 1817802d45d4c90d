"""A function's signature and docstring as its command line (argparse underneath; recipes use jsonargparse)."""

from __future__ import annotations

import argparse
import inspect
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints


def call_with(function: Callable[..., Any], arguments: list[str], *, prog: str) -> Any:
    """Parse ``arguments`` as ``function`` wants them and call it.

    Parameters before ``*`` become positional words, ``*names`` takes the rest, keyword-only ones become ``--options``; the help texts are
    those of the docstring's Args section.
    """
    parser, rest = build_parser(function, prog=prog)
    values = vars(parser.parse_intermixed_args(arguments))
    extra = values.pop(rest, []) if rest else []
    positional = [values.pop(p) for p in _positional(function)]
    return function(*positional, *extra, **values)


def build_parser(function: Callable[..., Any], *, prog: str) -> tuple[argparse.ArgumentParser, str | None]:
    """Parser for ``function`` and the name of its ``*rest`` parameter, if any."""
    texts = _argument_texts(function.__doc__ or "")
    parser = argparse.ArgumentParser(prog=prog, description=(function.__doc__ or "").strip().splitlines()[0])
    hints = get_type_hints(function)
    rest = None
    for name, parameter in inspect.signature(function).parameters.items():
        kind, help_text = _plain_type(hints.get(name, str)), texts.get(name, "").replace("%", "%%")
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            parser.add_argument(name, nargs="*", help=help_text)
            rest = name
        elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            _add_option(parser, name, parameter.default, kind, help_text)
        elif parameter.default is inspect.Parameter.empty:
            parser.add_argument(name, type=kind, help=help_text)
        else:
            parser.add_argument(name, type=kind, nargs="?", default=parameter.default, help=help_text)
    return parser, rest


def _add_option(parser: argparse.ArgumentParser, name: str, default: Any, kind: Any, help_text: str) -> None:
    flag = "--" + name.replace("_", "-")
    if kind is bool:
        parser.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, default=default, help=help_text)
    else:
        parser.add_argument(flag, dest=name, type=kind, default=default, help=help_text)


def _positional(function: Callable[..., Any]) -> list[str]:
    ordinary = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [n for n, p in inspect.signature(function).parameters.items() if p.kind is ordinary]


def _plain_type(hint: Any) -> Any:
    """``int | None`` -> int."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(a for a in get_args(hint) if a is not type(None))
    return hint if hint in (str, int, float, bool, Path) else str


def _argument_texts(doc: str) -> dict[str, str]:
    """Name -> text of the Args section of a Google-style docstring."""
    section = re.search(r"Args:\n(.*?)(?:\n\s*\n|\Z)", inspect.cleandoc(doc), re.DOTALL)
    texts: dict[str, str] = {}
    name = ""
    for line in section[1].splitlines() if section else []:
        if match := re.match(r" {4}(\w+): (.*)", line):
            name = match[1]
            texts[name] = match[2]
        elif name:
            texts[name] += " " + line.strip()
    return texts
