"""``python -m eval TASK ...`` is ``vlm eval TASK ...``, for launchers that start modules: ``torchrun -m eval niah``."""

from __future__ import annotations

import sys

from vlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
