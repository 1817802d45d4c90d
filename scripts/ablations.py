"""What a choice is worth: the same recipe trained with and without it, for few steps, scored on held-out conversations.

    python scripts/ablations.py starts        # nano as a look-up or with ordinary weights; after python -m train nano_eyes (15 minutes)
    python scripts/ablations.py changes       # nano with and without tokens of what is new and gone; likewise (40 minutes)
    python scripts/ablations.py connectors    # smol's named prototypes, or VILA's MLP (about two hours)
    python scripts/ablations.py variations    # smol with made-up variations of its pictures, or without (about two hours)

Runs are resumable; those with the same settings are shared between ablations. Scores are teacher forced (`eval.teacher`): smol's on
unseen pictures of kinds that training shows, nano's on scenes, colour-shape pairs and phrasings that it does not (times: on scenes only,
because the answers of training are those that the frames show).
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Ablation:
    """Variants of a recipe.

    Attributes:
        recipe: Name of a shipped recipe.
        stage: The last stage that is trained, with its number of steps.
        variants: Overrides by name; the first is the recipe as it ships.
        kinds: Questions to score.
        data: Arguments of the conversations to score on.
    """

    recipe: str
    stage: tuple[str, int]
    variants: dict[str, tuple[str, ...]]
    kinds: tuple[str, ...]
    data: dict[str, Any]


SMOL_KINDS = ("presence", "when", "at", "count", "list")
ABLATIONS = {
    "starts": Ablation(
        "nano",
        ("pictures", 200),
        {"look-up": (), "ordinary weights": ("model.args.alike=false",)},
        ("colour", "shape", "count", "presence"),
        {"split": "heldout", "level": "stills"},
    ),
    "changes": Ablation(
        "nano",
        ("short", 200),
        {"what changes": (), "frames only": ("model.args.pooling=frame",)},
        ("when", "end", "times", "at"),
        {"split": "train", "level": "short"},
    ),
    "connectors": Ablation(
        "smol",
        ("sft", 200),
        {
            "named prototypes": (),
            "mlp2x_gelu": (
                "model.args={connector: {type: mlp2x_gelu}}",
                "stages.align.trainable={mm_projector: 1e-3, '*.token_rows': 1e-3}",
                "stages.sft.trainable={mm_projector: 1e-3, '*.token_rows': 1e-3, '*.lora_*': 1e-3}",
            ),
        },
        SMOL_KINDS,
        {"split": "picture", "classes": 0.0},
    ),
    "variations": Ablation(
        "smol",
        ("sft", 200),
        {
            "with variations": (),
            "without": ("stages.align.data.args.varied=0.0", "stages.sft.data.args.varied=0.0"),
        },
        SMOL_KINDS,
        {"split": "picture", "classes": 0.0},
    ),
}


def scores(ablation: Ablation, name: str, overrides: Iterable[str], runs: Path, count: int) -> list[dict[str, Any]]:
    """Train one variant, or go on with it, and score it: rows of the results file."""
    from eval.report import row
    from eval.teacher import teacher_forced
    from train.build import build_model
    from train.run import run
    from train.stages import load_recipe
    from vlm.plugins.parts import load_parts

    stage, steps = ablation.stage
    settings = [f"until={stage}", f"stages.{stage}.steps={steps}", "report_to=[]", *overrides]
    out = runs / f"{ablation.recipe}-{hashlib.sha256(repr(settings).encode()).hexdigest()[:8]}"
    recipe = load_recipe(ablation.recipe, [f"out={out}", *settings])
    if run(recipe):
        sys.exit("stopped; the same command goes on")
    model, processor = build_model(recipe)
    trained, _ = load_parts(model, out / "final")
    found = teacher_forced(trained, processor, held_out(ablation, count))  # type: ignore[arg-type]
    return [
        row(
            f"{kind}, {name}",
            round(100 * found[kind].share, 1),
            "%",
            answers=found[kind].answers,
            nats_per_answer=round(found[kind].nats / found[kind].answers, 2),
        )
        for kind in ablation.kinds
    ]


def held_out(ablation: Ablation, count: int) -> Iterable[Any]:
    """Conversations that no recipe trains on."""
    if ablation.recipe == "smol":
        from data_recipes.synth.smol import conversations

        data: Any = conversations(size=count, seed=1, **ablation.data)
    else:
        from data_recipes.synth.shapes import conversations as drawn

        data = drawn(size=count, seed=1, **ablation.data)
    return (data[i] for i in range(count))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ablation", choices=ABLATIONS)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe, for all variants")
    parser.add_argument("--count", type=int, default=100, help="conversations to score on")
    parser.add_argument("--steps", type=int, help="of the last stage that is trained")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results", help="folder of the results file")
    options = parser.parse_intermixed_args()
    sys.path.insert(0, str(ROOT))
    from eval.report import write_results
    from vlm.errors import VLMError

    ablation, given, rows = ABLATIONS[options.ablation], options.overrides, []
    if options.steps:
        ablation = replace(ablation, stage=(ablation.stage[0], options.steps))
    try:
        for name, changes in ablation.variants.items():
            rows += scores(ablation, name, [*given, *changes], options.runs, options.count)
    except VLMError as error:
        sys.exit(str(error))
    stage, steps = ablation.stage
    used = ["--steps", str(steps), "--count", str(options.count)]
    write_results(
        f"ablation-{options.ablation}",
        rows,
        command=" ".join(["python scripts/ablations.py", options.ablation, *given, *used]),
        seed=0,
        setting=f"recipe {ablation.recipe} up to {steps} steps of {stage}, teacher forced",
        out_dir=options.out,
    )


if __name__ == "__main__":
    main()
