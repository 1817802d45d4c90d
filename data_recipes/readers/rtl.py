"""ActivityNet-RTL (LITA, 2403.19046): questions whose answers say when, and why.

    train  {"v_abcdefghijk": {"duration": 82.7, "QA": [{"q": "When ...?", "a": "<12.3> <20.0> Because ..."}]}}
    eval   [{"question_id": "abcdefghijk_0", "vid": "abcdefghijk", "question": "When ...?", "answer": "[<12.3> <20.0>] Because ...",
             "duration": 82.7}]

The layouts are inferred from LITA's loaders; the files themselves were not to be had.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_recipes.readers.annotations import Annotated, Annotations, Question, each, found, read_json, text
from data_recipes.sample import mark
from vlm.errors import DataError
from vlm.time.parse import LITA_TIME, parse_lita

_BRACKETS = re.compile(r"\[\s*(<[^>]*>\s*<[^>]*>)\s*\]")


def rtl(path: str | Path, media: str | Path) -> Annotations:
    """Read either file; a video that several questions are about is one item.

    Args:
        path: The JSON file.
        media: Folder of the videos, with or without ``v_`` before their names.

    Raises:
        DataError: The file is damaged, an answer has fewer than two times, or no video is there.
    """
    try:
        videos = list(_by_video(read_json(path, dict, list)))
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{Path(path).name}: a record lacks {error}") from error
    return found(path, each(path, videos, _read), media)


def _by_video(records: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(records, dict):
        yield from records.items()
        return
    videos: dict[str, dict[str, Any]] = {}
    for record in records:
        name = record["vid"] if record["vid"].startswith("v_") else f"v_{record['vid']}"
        video = videos.setdefault(name, {"duration": record["duration"], "QA": []})
        video["QA"].append({"q": record["question"], "a": record["answer"], "id": record["question_id"]})
    yield from videos.items()


def _read(name: str, record: dict[str, Any]) -> Annotated:
    duration = float(record["duration"])
    questions = []
    for place, pair in enumerate(record["QA"]):
        said = _BRACKETS.sub(r"\1", text(pair["a"]))
        read = parse_lita(said, duration)
        if read.fallback:
            raise DataError(f"the answer {pair['a']!r} has fewer than two times like <12.3>")
        answer = LITA_TIME.sub(lambda m: mark(min(max(float(m[1]), 0.0), duration)), said)
        questions.append(Question(str(pair.get("id", f"{name}-{place}")), text(pair["q"]), answer, tuple(read.spans)))
    return Annotated(name, duration, questions=tuple(questions))
