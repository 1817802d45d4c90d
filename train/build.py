"""From names to objects: calls of a recipe, the model, the dataset."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from train.stages import Call, Recipe, Stage
from vlm.errors import ConfigError


def resolve(path: str, *, where: str) -> Callable[..., Any]:
    """The object behind ``package.module:name``.

    Raises:
        ConfigError: The module or the name does not exist; the message lists near names.
    """
    module_name, colon, name = path.partition(":")
    if not colon:
        raise ConfigError(f"{where}={path!r} is not of the form package.module:name")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise ConfigError(f"{where}={path!r}: there is no module {error.name!r}") from error
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, dir(module)) or [n for n in dir(module) if not n.startswith("_")]
        raise ConfigError(f"{where}={path!r}: {module_name} has no {name!r}; near: {', '.join(near[:8])}")
    return getattr(module, name)


def call(spec: Call, *, where: str, **context: Any) -> Any:
    """Call what ``spec`` names with its arguments, and with those of ``context`` that it has parameters for.

    Raises:
        ConfigError: An argument is unknown or missing.
    """
    function = resolve(spec.call, where=f"{where}.call")
    parameters = inspect.signature(function).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [] if open_ended else [name for name in spec.args if name not in parameters]
    if unknown:
        raise ConfigError(
            f"{where}.args.{unknown[0]}: {spec.call} has no such argument; it has {', '.join(parameters)}"
        )
    given = {**{k: v for k, v in context.items() if k in parameters}, **spec.args}
    required = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    missing = [name for name in required if name not in given]
    if missing:
        raise ConfigError(f"{where}.args.{missing[0]}: {spec.call} needs this argument")
    return function(**given)


def build_model(recipe: Recipe) -> tuple[nn.Module, Any]:
    """Model and processor (None if there is none) of a recipe. The random state decides fresh weights: seed it
    before.
    """
    if ":" in recipe.model.call:
        built = call(recipe.model, where="model", seed=recipe.seed)
    else:
        import vlm

        built = vlm.load(recipe.model.call, **recipe.model.args)
    if isinstance(built, nn.Module):
        return built, None
    model, processor = built if isinstance(built, tuple) else (built.model, getattr(built, "processor", None))
    return model, processor


def build_dataset(stage: Stage, *, seed: int, processor: Any) -> Any:
    """The dataset of a stage: ``len()`` and ``[i]`` giving a `Sample` or a ready example.

    Raises:
        ConfigError: The callable does not return such an object, or an empty one.
    """
    where = f"stages.{stage.name}.data"
    dataset = call(stage.data, where=where, seed=seed, processor=processor, frames=stage.frames, seq_len=stage.seq_len)
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ConfigError(
            f"{where}.call={stage.data.call!r} returned {type(dataset).__name__}; a dataset has len() and [i]"
        )
    if len(dataset) == 0:
        raise ConfigError(f"{where}.call={stage.data.call!r} returned an empty dataset")
    return dataset


def build_collate(stage: Stage, processor: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """What makes a batch of examples in this stage."""
    from train.data import pad_and_stack

    if stage.collate is not None:
        return resolve(stage.collate.call, where=f"stages.{stage.name}.collate.call")
    return getattr(processor, "collate", pad_and_stack)
