"""Long measurements on the disk until all are there, so that an interrupted command goes on where it stood."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlm.files import write_text


class Kept:
    """Measures each thing once.

    Args:
        path: File of what has been measured.
        same: What it depends on, as JSON has it; a file with anything else, or that cannot be read, counts for nothing.
    """

    def __init__(self, path: Path, same: Any) -> None:
        self.path, self.same = path, same
        self.known: dict[str, Any] = {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["same"] == same:
                self.known = dict(found["known"])
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def __call__(self, key: str, measure: Callable[[], Any]) -> Any:
        """What ``measure`` has found, now or before."""
        if key not in self.known:
            self.known[key] = measure()
            write_text(self.path, json.dumps({"same": self.same, "known": self.known}))
        return self.known[key]

    def drop(self) -> None:
        """Remove the file: everything is written elsewhere."""
        self.path.unlink(missing_ok=True)
