"""What `smol`'s eyes could tell without a language model: is a thing in the clip, and in which shot?

    python scripts/eye_ceiling.py    # a minute, once the feature banks are built

Writes docs/results/eye-ceiling.json. For clips of 30 s of unseen pictures, as in `vlm eval basics`, the connector's own score of
a name decides (log-softmax over all names, best shot and region). The threshold is the best one for these very questions, so no
reader of these scores alone does better. Only names that training pictures have are asked for. Keys: those of
`stamp_prototypes`, and those that ship.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CLIPS = 400


def scores_of(connector: Any, names: dict[str, int]) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    """Scores of things that are there and of things that are not, and whether the best shot was the right one."""
    import torch

    from data_recipes.synth.smol import conversations
    from data_recipes.synth.smol_names import unrelated_names

    data = conversations(
        "picture", size=CLIPS, seed=7, seconds=(30, 30), shots=(3, 6), classes=0.0, speech=0.0, frames=64
    )
    there, absent, found = [], [], []
    for index in range(CLIPS):
        sample, rng = data[index], np.random.default_rng(index)
        clip, video = sample.meta["clip"], sample.messages[0]["content"][0]
        shots = clip.shots
        with torch.no_grad():
            features = torch.from_numpy(video["features"]).float()
            logits_FRC = connector.similarities(features).log_softmax(-1)
        best_FC = logits_FRC.amax(1)
        owners = np.searchsorted([s.end for s in shots], video["timestamps"], side="right").clip(max=len(shots) - 1)
        shown = [i.name for s in shots for i in s.items]
        nouns = sorted({n.noun for n in shown} & names.keys())
        others = [n.noun for n in unrelated_names(shown, rng, split="picture", classes=0.0) if n.noun in names]
        for noun in nouns[: len(others)]:
            score_F = best_FC[:, names[noun]]
            there.append(float(score_F.max()))
            absent.append(float(best_FC[:, names[others.pop(0)]].max()))
            right = {i for i, s in enumerate(shots) if any(item.name.noun == noun for item in s.items)}
            found.append(int(owners[int(score_F.argmax())]) in right)
    return np.array(there), np.array(absent), found


def best_balanced(there: np.ndarray, absent: np.ndarray) -> float:
    """Mean of the shares of right yes and right no at the best threshold."""
    cuts = np.sort(np.concatenate([there, absent]))
    return max(float(((there >= cut).mean() + (absent < cut).mean()) / 2) for cut in cuts)


def main() -> None:
    """Command line."""
    sys.path.insert(0, str(ROOT))
    import vlm
    from eval.report import row, write_results
    from train.smol import model, stamp_prototypes

    nouns, _, _ = stamp_prototypes()
    rows = []
    for which, built in (("as they start", model()[0]), ("that ship", vlm.load("smol").model)):
        connector = built.mm_projector
        first = connector.keys.out_features - len(nouns)
        there, absent, found = scores_of(connector, {noun: first + i for i, noun in enumerate(nouns)})
        ranks = float((there[:, None] > absent[None]).mean() + 0.5 * (there[:, None] == absent[None]).mean())
        about: dict[str, Any] = {"questions": 2 * len(there)}
        rows += [
            row(f"presence, best threshold, keys {which}", round(100 * best_balanced(there, absent), 1), "%", **about),
            row(f"presence, area under the curve, keys {which}", round(ranks, 3), **about),
            row(f"right shot, keys {which}", round(100 * float(np.mean(found)), 1), "%", questions=len(found)),
        ]
    write_results(
        "eye-ceiling",
        rows,
        command="python scripts/eye_ceiling.py",
        seed=7,
        setting=f"{CLIPS} clips of 30 s, 3 to 6 shots, unseen pictures",
        out_dir=ROOT / "docs/results",
    )


if __name__ == "__main__":
    main()
