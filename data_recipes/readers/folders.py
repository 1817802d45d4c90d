"""Where the videos of a dataset are: files or folders of frames, under names that differ a little from those in the annotations."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vlm.errors import DataError

VIDEO_SUFFIXES = (
    ".mp4",
    ".mkv",
    ".webm",
    ".avi",
    ".mov",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".wmv",
    ".flv",
    ".3gp",
    ".ts",
    ".gif",
)
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class MediaFolder:
    """A folder with one file, or one folder of frames, per video; folders inside it are looked through as well.

    Attributes:
        root: The folder.

    Raises:
        DataError: There is no such folder.
    """

    root: Path

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise DataError(f"{self.root} is no folder of videos")

    def find(self, name: str) -> Path | None:
        """The video called ``name`` in annotations, with or without suffix, with or without the ``v_`` of ActivityNet."""
        plain = name.removesuffix(Path(name).suffix) if Path(name).suffix.lower() in VIDEO_SUFFIXES else name
        bare = plain.removeprefix("v_")
        return next((self._by_name[n] for n in (name, plain, bare, f"v_{bare}") if n in self._by_name), None)

    @staticmethod
    def frames(folder: Path) -> int:
        """Number of frames in a folder of frames."""
        return sum(1 for entry in os.scandir(folder) if entry.name.lower().endswith(FRAME_SUFFIXES))

    @cached_property
    def _by_name(self) -> dict[str, Path]:
        """Videos by their names, by those without suffix, and by their paths from the root; the first in the order of names wins."""
        known: dict[str, Path] = {}
        for folder, inside, files in os.walk(self.root, followlinks=True):
            inside.sort()
            here = Path(folder)
            if here != self.root and any(f.lower().endswith(FRAME_SUFFIXES) for f in files):
                known.setdefault(here.name, here)
                known.setdefault(here.relative_to(self.root).as_posix(), here)
            for file in sorted(files):
                if file.lower().endswith(VIDEO_SUFFIXES):
                    path = here / file
                    for name in (file, path.stem, path.relative_to(self.root).as_posix()):
                        known.setdefault(name, path)
        return known
