"""Dense captions: ActivityNet-Captions, and YouCook2 and ViTT as VidChapters lays them out.

{"v_QOlSCBRmfWY": {"duration": 82.73, "timestamps": [[0.83, 19.86], [17.37, 60.81]], "sentences": ["A woman ...", "The girl ..."]}}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_recipes.readers.annotations import Annotated, Annotations, Event, each, found, read_json, span, text


def captions(path: str | Path, media: str | Path) -> Annotations:
    """Read a file of dense captions.

    Args:
        path: The JSON file.
        media: Folder of the videos; see `data_recipes.readers.folders`.

    Raises:
        DataError: The file is damaged, or has no video that is there.
    """
    return found(path, each(path, read_json(path, dict).items(), _read), media)


def _read(name: str, record: Any) -> Annotated:
    pairs = zip(record["timestamps"], record["sentences"], strict=True)
    events = tuple(Event((span(start, end),), text(sentence)) for (start, end), sentence in pairs)
    return Annotated(name, float(record["duration"]), events)
