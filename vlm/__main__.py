"""``python -m vlm`` is ``vlm``."""

from __future__ import annotations

import sys

from vlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
