"""NExT-QA: questions about videos with short answers.

processed (as LITA reads it)   [{"video": "4010069381", "QA": [{"q": "how do the two man play ...", "a": "roll the handle"}]}]
open-ended csv                 video,frame_count,width,height,question,answer,qid,type
multiple choice csv            video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4   (answer: number of a choice)
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_recipes.readers.annotations import Annotated, Annotations, Question, each, found, read_json, read_text, text
from vlm.errors import DataError


def nextqa(path: str | Path, media: str | Path) -> Annotations:
    """Read any of the three; a video that several questions are about is one item.

    Raises:
        DataError: The file is damaged, or no video is there.
    """
    try:
        videos = list(_tables(path) if Path(path).suffix.lower() == ".csv" else _processed(path))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{Path(path).name}: a record lacks {error}") from error
    return found(path, each(path, videos, _read), media)


def _processed(path: str | Path) -> Iterator[tuple[str, list[Any]]]:
    for record in read_json(path, list):
        yield str(record["video"]), record["QA"]


def _tables(path: str | Path) -> Iterator[tuple[str, list[Any]]]:
    videos: dict[str, list[Any]] = {}
    for row in csv.DictReader(io.StringIO(read_text(path))):
        answer = row[f"a{int(row['answer'])}"] if "a0" in row else row["answer"]
        videos.setdefault(row["video"], []).append(
            {"q": row["question"], "a": answer, "id": f"{row['video']}_{row['qid']}"}
        )
    yield from videos.items()


def _read(name: str, pairs: list[Any]) -> Annotated:
    questions = [
        Question(str(pair.get("id", f"{name}-{place}")), text(pair["q"]), text(pair["a"]))
        for place, pair in enumerate(pairs)
    ]
    return Annotated(name, None, questions=tuple(questions))
