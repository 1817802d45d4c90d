"""Sentences and when they are true: Charades-STA, QVHighlights and DiDeMo. One event each.

Charades-STA   AO8RW 0.0 6.9##a person is putting a book on a shelf.
QVHighlights   {"qid": 8737, "query": "A family is playing", "duration": 126, "vid": "bP5KfdFJzC4_660.0_810.0",
                "relevant_windows": [[0, 16]], ...}                                                  (JSON Lines)
DiDeMo         [{"annotation_id": 1, "video": "12_34_ab.mov", "description": "the dog runs", "num_segments": 6,
                "times": [[1, 1], [1, 2], [1, 1], [0, 1]], ...}]
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

from data_recipes.readers.annotations import (
    Annotated,
    Annotations,
    Event,
    each,
    found,
    read_json,
    read_text,
    span,
    text,
)
from vlm.errors import DataError

DIDEMO_SECONDS = 5.0  # of a segment; the last of a clip is shorter


def charades_sta(path: str | Path, media: str | Path, *, lengths: str | Path | None = None) -> Annotations:
    """Read ``charades_sta_train.txt`` or ``charades_sta_test.txt``.

    Args:
        path: The text file.
        media: Folder of the videos.
        lengths: ``Charades_v1_train.csv`` or ``..._test.csv``, which has the durations (columns ``id`` and ``length``).

    Raises:
        DataError: A file is damaged, or no video is there.
    """
    seconds = _lengths(lengths) if lengths is not None else {}
    lines = _lines(path)

    def read(_: str, line: str) -> Annotated:
        head, hashes, sentence = line.partition("##")
        if not hashes:
            raise DataError(f"{line[:60]!r} has no '##' before its sentence")
        video, start, end = head.split()
        return Annotated(video, seconds.get(video), (Event((span(start, end),), text(sentence)),))

    return found(path, each(path, lines, read), media)


def qvhighlights(path: str | Path, media: str | Path) -> Annotations:
    """Read ``highlight_train_release.jsonl`` or ``..._val_...``; a query may have several windows.

    Raises:
        DataError: The file is damaged, or no video is there.
    """
    lines = _lines(path)

    def read(_: str, line: str) -> Annotated:
        record = json.loads(line)
        windows = tuple(span(*window) for window in record["relevant_windows"])
        return Annotated(record["vid"], float(record["duration"]), (Event(windows, text(record["query"])),))

    return found(path, each(path, lines, read), media)


def didemo(path: str | Path, media: str | Path) -> Annotations:
    """Read ``train_data.json``, ``val_data.json`` or ``test_data.json``.

    A moment is what most annotators chose (the first of those in a tie), in seconds of segments of five seconds.

    Raises:
        DataError: The file is damaged, or no video is there.
    """
    records = read_json(path, list)

    def read(_: str, record: Any) -> Annotated:
        (first, last), _votes = Counter(tuple(t) for t in record["times"]).most_common(1)[0]
        moment = span(first * DIDEMO_SECONDS, (last + 1) * DIDEMO_SECONDS)
        return Annotated(record["video"], None, (Event((moment,), text(record["description"])),))

    return found(path, each(path, [(f"record {i}", r) for i, r in enumerate(records, 1)], read), media)


def _lines(path: str | Path) -> list[tuple[str, str]]:
    """Name and content of every line that is not empty."""
    return [(f"line {i}", line) for i, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]


def _lengths(path: str | Path) -> dict[str, float]:
    try:
        return {row["id"]: float(row["length"]) for row in csv.DictReader(read_text(path).splitlines())}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{Path(path).name} has no table with the columns id and length: {error}") from error
