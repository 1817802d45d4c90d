"""Recipes as files: YAML to nested data, ``key=value`` overrides, nested data to a dataclass, with errors that name the key."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from vlm.errors import ConfigError

RECIPES = Path(__file__).parent / "recipes"


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(p.stem for p in RECIPES.glob("*.yaml"))


def recipe_path(recipe: str | Path) -> Path:
    """The file of a recipe: a path, or the name of a shipped one.

    Raises:
        ConfigError: There is no such file.
    """
    path = Path(recipe)
    for candidate in (path, RECIPES / f"{recipe}.yaml"):
        if candidate.is_file():
            return candidate
    raise ConfigError(
        f"no recipe {str(recipe)!r}: neither a file nor one of the shipped ones ({', '.join(shipped_recipes())})"
    )


@contextlib.contextmanager
def naming(recipe: str | Path) -> Iterator[None]:
    """Errors of the block name the recipe's file.

    Raises:
        ConfigError: The block's, with the name before it.
    """
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{recipe_path(recipe).name}: {error}") from error


def read_tree(recipe: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """A recipe as nested data.

    Args:
        recipe: Path of a YAML file, or the name of a shipped recipe.
        overrides: Dotted paths with YAML values.

    Raises:
        ConfigError: The file is missing or is no YAML mapping, or an override does not fit.
    """
    path = recipe_path(recipe)
    tree = _yaml(path.read_bytes(), what=str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a recipe is a mapping with model, stages and out; got {type(tree).__name__}")
    for override in overrides or []:
        _override(tree, override)
    return tree


def _yaml(text: str | bytes, *, what: str) -> Any:
    """Plain data of a YAML text. Numbers such as ``1e-3``, words in YAML 1.1, are numbers here, as in YAML 1.2."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe, with one more way to write a number."""

    number = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    try:
        return Loader(text).get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what}: not readable as YAML: {error}") from error


def as_call(value: Any) -> Any:
    """A bare string is a call without arguments."""
    return {"call": value} if isinstance(value, str) else value


def parse(cls: type, tree: dict[str, Any], *, where: str = "") -> Any:
    """jsonargparse on a dataclass, with its errors said in one line that starts with the key.

    Raises:
        ConfigError: A key is unknown or missing, or a value of the wrong type.
    """
    import jsonargparse

    check_keys(cls, tree, where)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, None)
    try:
        return cls(**vars(parser.instantiate(parser.parse_object(tree))))
    except (argparse.ArgumentError, TypeError, AttributeError) as error:
        raise ConfigError(where + _one_line(str(error))) from error


def check_keys(cls: type, tree: Any, where: str) -> None:
    """Every key is a field of the dataclass.

    Raises:
        ConfigError: One is not; the message lists near names.
    """
    known = [f.name for f in fields(cls)]
    for key in tree if isinstance(tree, dict) else ():
        if key not in known:
            near = difflib.get_close_matches(str(key), known) or known
            raise ConfigError(f"{where}{key}: there is no such key; near: {', '.join(near)}")


def _one_line(message: str) -> str:
    """``Parser key "steps":\\n  Expected ...`` -> ``steps: Expected ...``."""
    lines = [line.strip() for line in message.splitlines() if "class_path" not in line]
    text = " ".join(lines).replace('Parser key "', "").replace('":', ":")
    return re.sub(r"<class '([\w.]+)'>", r"\1", text).replace("typing.", "")


def check_not_none(config: Any) -> None:
    """No field is None that may not be.

    Raises:
        ConfigError: One is.
    """
    hints = typing.get_type_hints(type(config))
    for key, hint in hints.items():
        optional = isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint)
        if getattr(config, key) is None and not optional:
            raise ConfigError(f"{key}: a value is needed, got null")


def _override(tree: dict[str, Any], override: str) -> None:
    """Set one ``a.b.0.c=value`` in the tree; list items are found by number or by their ``name``/``call``."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"override {override!r} is not of the form key=value")
    value = _yaml(text, what=f"override {override!r}") if text else ""
    *parents, last = path.split(".")
    node: Any = tree
    for key in parents:
        node = _step_into(node, key, override)
    if isinstance(node, list):
        node[_position(node, last, override)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"override {override!r}: {'.'.join(parents)!r} is a value, not a mapping")


def _step_into(node: Any, key: str, override: str) -> Any:
    if isinstance(node, list):
        position = _position(node, key, override)
        node[position] = child = as_call(node[position])
        return child
    if isinstance(node, dict):
        node[key] = child = as_call(node[key]) if node.get(key) is not None else {}
        return child
    raise ConfigError(f"override {override!r}: {key!r} is inside a plain value")


def _position(items: list[Any], key: str, override: str) -> int:
    names = [str(item.get("name", item.get("call"))) if isinstance(item, dict) else str(item) for item in items]
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(items):
        return int(key)
    raise ConfigError(
        f"override {override!r}: no item {key!r}; there are {', '.join(names)} (or 0 to {len(items) - 1})"
    )
