"""How much the features of two pictures have in common, of one kind of thing and of two: what variations are made to resemble.

    python scripts/picture_likeness.py    # seconds, once the feature bank is built

Writes docs/results/picture-likeness.json. Compared is the shift of a rendering away from the mean background
(`data_recipes.synth.variations`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Command line."""
    sys.path.insert(0, str(ROOT))
    from data_recipes.synth.imagenet import PrototypeMaps
    from data_recipes.synth.variations import Variations
    from eval.report import row, write_results

    variations = Variations(PrototypeMaps())
    bank, unit, kinds = variations.bank, variations.unit_shifts, variations.nouns
    pictures = np.array([str(bank.rows[int(i)].items[0].picture) for i in bank.where("middle")])
    first, second = np.triu_indices(len(unit), 1)
    other = pictures[first] != pictures[second]
    first, second = first[other], second[other]
    cosines, alike = (unit @ unit.T)[first, second], kinds[first] == kinds[second]
    rows = [
        row(f"cosine of two pictures, {name}, percentile {percentile}", round(float(value), 2), pairs=int(chosen.sum()))
        for name, chosen in (("one kind", alike), ("two kinds", ~alike))
        for percentile in (10, 50, 90)
        for value in [np.percentile(cosines[chosen], percentile)]
    ]
    write_results(
        "picture-likeness",
        rows,
        command="python scripts/picture_likeness.py",
        seed=0,
        setting=f"{len(unit)} renderings of {len(np.unique(pictures))} training pictures of {len(np.unique(kinds))} kinds",
        out_dir=ROOT / "docs/results",
    )


if __name__ == "__main__":
    main()
