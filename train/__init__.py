"""Training: a recipe is data (`train.stages`), the loop is short (`train.loop`), a killed run goes on where it was
(`train.checkpoint`).
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(recipe_path: str | Path, overrides: list[str] | None = None, dry_run: bool = False) -> int:
    """Train a recipe, going on from its newest checkpoint if there is one.

    Args:
        recipe_path: YAML file, or the name of a shipped recipe.
        overrides: ``key=value`` with dotted keys, e.g. ``["out=runs/a", "stages.align.steps=100"]``.
        dry_run: Only print what would be trained and what it would need.

    Returns:
        Exit code: 0 when done, 75 when a signal asked the run to save and leave.

    Raises:
        ConfigError: The recipe is wrong; the message names the key.
        TrainingError: Training cannot go on; the message says which step and which samples.
    """
    from train.recipe_files import read_tree
    from train.stages import load_recipe

    if read_tree(recipe_path).get("trainer") == "grpo":
        return _grpo(recipe_path, overrides, dry_run)
    recipe = load_recipe(recipe_path, overrides)
    if dry_run:
        from train.dryrun import describe

        sys.stdout.write(describe(recipe) + "\n")
        return 0
    from train.run import run

    return run(recipe)


def _grpo(recipe_path: str | Path, overrides: list[str] | None, dry_run: bool) -> int:
    from train.grpo import describe, load_grpo, train

    recipe = load_grpo(recipe_path, overrides)
    sys.stdout.write(f"{describe(recipe)}\n" if dry_run else f"{train(recipe)}\n")
    return 0


__all__ = ["main"]
