"""``python -m train RECIPE key=value ... [--dry-run]``; also under ``torchrun -m train`` and ``accelerate launch -m
train``.
"""

from __future__ import annotations

import argparse
import logging
import sys

from train import main
from vlm.errors import VLMError


def cli(arguments: list[str] | None = None) -> int:
    """Parse the command line, train, report errors in one line."""
    parser = argparse.ArgumentParser(prog="train", description="Train a recipe; a run that was interrupted goes on.")
    parser.add_argument("recipe", help="YAML file or name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. out=runs/a stages.align.steps=100")
    parser.add_argument("--dry-run", action="store_true", help="print what would be trained and what it would need")
    options = parser.parse_intermixed_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return main(options.recipe, options.overrides, options.dry_run)
    except VLMError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(cli())
