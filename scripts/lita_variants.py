"""Train and score some variants of LITA's ablation, all seeds, so that two cores can share ``vlm reproduce lita``.

    python scripts/lita_variants.py                    # lists the variants
    python scripts/lita_variants.py full "slow tokens only"

Runs resume; what has been scored is not trained again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it works in a clone without an installation


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="VARIANT")
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce"), help="folder of vlm reproduce")
    options = parser.parse_args()
    from eval.lita import SEEDS, VARIANTS, scores
    from vlm.errors import VLMError

    if not options.variants:
        print("\n".join(VARIANTS))
    try:
        for name in options.variants:
            for seed in range(SEEDS):
                print(name, seed, scores(name, seed, options.work / "lita"), flush=True)
    except VLMError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
