"""The connector of named prototypes against VILA's plain MLP, trained alike: what decided the connector of `smol`.

    python scripts/compare_connectors.py                 # about two hours on two cores; resumable
    python scripts/compare_connectors.py --steps 50      # a quick look

Both start from the same backbones and see the same conversations of the recipe ``smol`` in the same order. Scores are teacher forced, on
conversations about unseen pictures of kinds that training shows (`eval.teacher`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONNECTORS: dict[str, dict[str, Any] | None] = {"prototypes": None, "mlp2x_gelu": {"type": "mlp2x_gelu"}}
KINDS = ("presence", "when", "at", "count", "list")


def train(name: str, out: Path, steps: int) -> Path:
    """Train one of the two for 40 steps of alignment and ``steps`` of tuning; returns the folder of its weights."""
    from train.run import run
    from train.stages import load_recipe

    recipe = load_recipe("smol", [f"out={out}", "report_to=[]", f"stages.sft.steps={steps}"])
    connector = CONNECTORS[name]
    if connector is not None:
        recipe.model.args = {"connector": connector}
        for stage in recipe.stages:
            rest = {k: lr for k, lr in stage.trainable.items() if not k.startswith("mm_projector")}
            stage.trainable = {"mm_projector": 1e-3, **rest}
    if run(recipe):
        sys.exit("stopped; the same command goes on")
    return out / "final"


def score(final: Path, count: int) -> list[dict[str, Any]]:
    """Rows of the results file for one trained model."""
    import json

    from safetensors.torch import load_file

    from data_recipes.synth.smol import conversations
    from eval.teacher import teacher_forced
    from train.smol import export
    from vlm.presets.smol import TRAINED_FILE, apply_trained, base

    with tempfile.TemporaryDirectory() as folder:
        parts = export(final, Path(folder))
        meta = json.loads((parts / "trained.json").read_text())
        model, processor = base(extra_prototypes=meta["extra_prototypes"], connector=meta["connector"])
        apply_trained(model, load_file(parts / TRAINED_FILE), meta)
    data = conversations("picture", size=count, seed=1)
    scores = teacher_forced(model, processor, (data[i] for i in range(count)))
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        if kind in scores:
            found = scores[kind]
            value = round(100 * found.share, 1)
            about = {"answers": found.answers, "nats per answer": round(found.nats / found.answers, 2)}
            rows.append({"name": kind, "value": value, "unit": "%", "target": None, "setting": about})
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="of instruction tuning")
    parser.add_argument("--count", type=int, default=100, help="conversations to score on")
    parser.add_argument("--runs", type=Path, default=Path("runs/connectors"), help="folder of the two runs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results", help="folder of the results file")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from eval.report import write_results

    rows = []
    for name in CONNECTORS:
        final = train(name, options.runs / f"{name}-{options.steps}", options.steps)
        rows += [{**row, "name": f"{row['name']}, {name}"} for row in score(final, options.count)]
    command = f"python scripts/compare_connectors.py --steps {options.steps} --count {options.count}"
    setting = f"recipe smol: all of align, {options.steps} steps of sft; split picture, teacher forced"
    write_results("connectors", rows, command=command, seed=0, setting=setting, out_dir=options.out)


if __name__ == "__main__":
    main()
