"""Is LongVILA's order of stages worth it? The five stages of `longvila_nano` in other orders, shorter, several seeds each.

    python scripts/curriculum.py                          # docs/results/curriculum.json and .png; hours on two cores
    python scripts/curriculum.py --seeds 1 --scale 0.1    # a first look

Every order trains on the same number of samples of every kind and starts from connectors that know half (`KEPT`). Scored by free
generation: needles by frames, and the overlap of spans in 20 s clips. Orders that begin alike share what they begin with. Runs are
resumable, one after the other; `--only SEED` in a process of its own for each seed uses more cores.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it works in a clone without an installation

LENGTHS = (64, 256, 1024)
KEPT = 0.5  # of the shipped connectors: short trainings do not learn to read digits from nothing
PAPER = {  # VideoMME without subtitles, average / short / medium / long [S]
    "1-2-3-4-5": "57.5 / 69.3 / 56.1 / 47.0",
    "1-2-4-(3+5)": "55.9 / 67.4 / 54.1 / 46.1",
    "4-1-2-3-5": "56.0 / 69.2 / 54.1 / 44.5",
    "4-1-2-(3+5)": "55.3 / 67.2 / 53.6 / 45.1",
    "1-2-3": "not in the table",
}
NAMES = {"1": "align", "2": "pretrain", "3": "sft", "4": "extend", "5": "long"}


def recipe_for(order: str, recipe: dict[str, Any], scale: float) -> dict[str, Any]:
    """The recipe with its stages in another order, each ``scale`` as long.

    Args:
        order: Stages by number, ``(3+5)`` for two in one.
        recipe: `longvila_nano`, read from its file.
        scale: Share of its steps.
    """
    changed = copy.deepcopy(recipe)
    stages = {stage["name"]: stage for stage in changed["stages"]}
    changed["stages"] = []
    base = None
    for mark in order.split("-"):
        if mark == "(3+5)":
            stage = _joined(stages["sft"], stages["long"])
        else:
            stage = stages[NAMES[mark]]
        base = stage.get("rope_theta", base)
        if base is not None:
            stage["rope_theta"] = base
        stage["steps"] = max(2, round(scale * stage["steps"]))
        stage["warmup"] = min(stage["warmup"], max(1, stage["steps"] // 4))
        changed["stages"].append(stage)
    return changed


def _joined(short: dict[str, Any], long: dict[str, Any]) -> dict[str, Any]:
    """One stage with the samples of both, mixed, at the rates of the second."""
    stage = copy.deepcopy(long)
    share = [s["steps"] * s["batch_size"] for s in (short, long)]
    parts: dict[str, Any] = {}
    for samples, one in zip(share, (short, long), strict=True):
        for name, part in one["data"]["args"]["parts"].items():
            parts[f"{one['name']}_{name}"] = {**part, "weight": part["weight"] * samples / sum(share)}
    stage["data"]["args"]["parts"] = parts
    stage["steps"] = short["steps"] + long["steps"]
    return stage


def trained(order: str, seed: int, options: argparse.Namespace) -> Path:
    """Train one order with one seed, or go on with it; the folder ``final`` of its last stage.

    Each stage is a run of its own that starts from the one before, so that orders which begin alike share what they begin with.
    """
    import yaml

    from train.recipe_files import recipe_path
    from train.run import run
    from train.stages import load_recipe

    changed = recipe_for(order, yaml.safe_load(recipe_path("longvila_nano").read_text(encoding="utf-8")), options.scale)
    stages, marks, final = changed.pop("stages"), order.split("-"), None
    start = {**changed["model"], "args": {**changed["model"]["args"], "kept": KEPT}}
    for done, stage in enumerate(stages, start=1):
        name = "-".join(marks[:done]).replace("(", "").replace(")", "")
        out = options.runs / f"x{options.scale:g}-seed{seed}" / name
        model = {"call": "train.nano:model", "args": {"run": str(final)}} if final else start
        out.mkdir(parents=True, exist_ok=True)
        about = {**changed, "model": model, "stages": [stage]}
        (out / "recipe.yaml").write_text(yaml.safe_dump(about, sort_keys=False), encoding="utf-8")
        settings = [f"out={out}", f"seed={seed}", f"model.args.seed={seed}", "report_to=[]"]
        if run(load_recipe(out / "recipe.yaml", settings)):
            sys.exit("stopped; the same command goes on")
        final = out / "final"
    assert final is not None
    return final


def scores(order: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Train one order with one seed and score it; what is there already is not done again."""
    from eval.kept import Kept

    final = trained(order, seed, options)
    asked = {"needles": options.needles, "depths": options.depths, "clips": options.clips}
    found: dict[str, float] = Kept(final.with_name("scores.json"), asked)(
        "scores", lambda: scored(final, seed, options)
    )
    return found


def scored(final: Path, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Needles found by frames, and the overlap of spans, in percent, of the model in the folder ``final`` of a run."""
    import vlm
    from eval.longvila import needles_by_frames
    from eval.shapes import evaluate
    from train.nano import export

    model = export(final, final.with_name("model"))
    found, _ = needles_by_frames(
        str(model), model.parent, LENGTHS, needles=options.needles, depths=options.depths, seed=seed
    )
    rows = {r["name"]: r["value"] for r in evaluate(vlm.load(str(model)), n=options.clips, seed=seed, groups=("span",))}
    needles = {f"needle found, {n} frames": value for n, value in found.items()}
    return {**needles, "span mIoU": 100 * float(rows["span mIoU, known pairs"])}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", type=int, metavar="SEED", help="train and score with this seed only, and write nothing"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=0.3, help="share of the recipe's steps")
    parser.add_argument("--needles", type=int, default=5)
    parser.add_argument("--depths", type=int, default=4)
    parser.add_argument("--clips", type=int, default=40, help="to score spans on")
    parser.add_argument("--runs", type=Path, default=Path("runs/curriculum"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results", help="folder of the results file")
    options = parser.parse_args()
    from eval.report import heat_maps, row, write_results
    from vlm.errors import VLMError

    seeds = range(options.seeds) if options.only is None else [options.only]
    found: dict[str, list[dict[str, float]]] = {order: [] for order in PAPER}
    try:
        for seed in seeds:
            for order, each in found.items():
                each.append(scores(order, seed, options))
    except VLMError as error:
        sys.exit(str(error))
    if options.only is not None:
        return
    rows = []
    for order, each in found.items():
        for what in each[0]:
            values = [one[what] for one in each]
            about: dict[str, Any] = {
                "each": " ".join(f"{v:.1f}" for v in values),
                "videomme_of_the_paper": PAPER[order],
            }
            rows.append(row(f"{order}: {what}", statistics.mean(values), "%", **about))
    command = (
        f"python scripts/curriculum.py --seeds {options.seeds} --scale {options.scale:g} --needles {options.needles}"
    )
    command += f" --depths {options.depths} --clips {options.clips}"
    setting = {"recipe": "longvila_nano", "share_of_its_steps": options.scale, "seeds": options.seeds, "kept": KEPT}
    path = write_results("curriculum", rows, command=command, seed=0, setting=setting, out_dir=options.out)
    columns = list(next(iter(found.values()))[0])
    grid = [[statistics.mean(one[what] for one in each) for what in columns] for each in found.values()]
    short = [what.replace("needle found, ", "").replace(" frames", "") for what in columns]
    heat_maps(
        path.with_suffix(".png"),
        {"mean over seeds, %": grid},
        rows=list(found),
        columns=short,
        labels=("order", "needles by frames; spans"),
    )


if __name__ == "__main__":
    main()
