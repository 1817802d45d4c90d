"""What all formats of annotated videos become: a video with events that have times, or with questions and answers about it.

`Annotations` finds the videos in a folder. What is not there is left out, counted and named; nothing else ever takes its place.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_recipes.readers.folders import MediaFolder
from vlm.errors import DataError
from vlm.time import Span


class MissingMediaWarning(UserWarning):
    """Annotated videos were not found and are left out."""


@dataclass(frozen=True)
class Event:
    """Something that happens.

    Attributes:
        spans: When, in seconds; more than one if it happens again.
        text: What.
    """

    spans: tuple[Span, ...]
    text: str


@dataclass(frozen=True)
class Question:
    """A question about a video, with its answer.

    Attributes:
        id: Unique in its file.
        question: Without any instruction on how to answer.
        answer: Times in it are ``{t:12.34}`` (seconds).
        spans: What it says about when, in seconds.
    """

    id: str
    question: str
    answer: str
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Annotated:
    """A video and what is known about it.

    Attributes:
        video: Its name in the file of annotations.
        duration: Seconds; None if the file does not say.
        events: In the order of the file.
        questions: Likewise.
    """

    video: str
    duration: float | None
    events: tuple[Event, ...] = ()
    questions: tuple[Question, ...] = ()


@dataclass(frozen=True)
class Annotations:
    """Annotated videos that were found.

    Attributes:
        name: Of the file.
        items: The annotations.
        paths: Of their videos: files, or folders of frames.
        missing: Names of annotated videos that were not found.
    """

    name: str
    items: tuple[Annotated, ...]
    paths: tuple[Path, ...]
    missing: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.items)

    def part(self, index: int) -> dict[str, Any]:
        """The video of an item as a content part. A folder of frames has no times: they are spread over the annotated duration."""
        path, duration = self.paths[index], self.items[index].duration
        part: dict[str, Any] = {"type": "video", "video": str(path)}
        if path.is_dir() and duration:
            part["frame_fps"] = MediaFolder.frames(path) / duration
        return part


def found(path: str | Path, items: Sequence[Annotated], media: str | Path) -> Annotations:
    """Look for the videos of ``items`` in the folder ``media``.

    Raises:
        DataError: There are no items, or not one of their videos is there.

    Warns:
        MissingMediaWarning: Some are not there.
    """
    name, folder = Path(path).name, MediaFolder(Path(media))
    if not items:
        raise DataError(f"{name} annotates nothing")
    pairs = [(item, folder.find(item.video)) for item in items]
    missing = tuple(item.video for item, where in pairs if where is None)
    there = [(item, where) for item, where in pairs if where is not None]
    if not there:
        raise DataError(f"{media} has none of the {len(items)} videos that {name} annotates, such as {missing[0]!r}")
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        warnings.warn(
            f"{name}: {len(missing)} of {len(items)} videos are not in {media} and are left out: {some}",
            MissingMediaWarning,
            stacklevel=3,
        )
    return Annotations(name, tuple(i for i, _ in there), tuple(w for _, w in there), missing)


def read_text(path: str | Path) -> str:
    """A text file.

    Raises:
        DataError: It cannot be read, or is no UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is no text in UTF-8: {error}") from error


def read_json(path: str | Path, *kinds: type) -> Any:
    """A JSON file that holds one of ``kinds``, `list` or `dict`.

    Raises:
        DataError: It cannot be read, is no JSON, or holds something else.
    """
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, kinds):
        wanted = " or ".join(f"a {kind.__name__}" for kind in kinds)
        raise DataError(f"{Path(path).name} is a {type(content).__name__}, not {wanted}")
    return content


def each(
    path: str | Path, records: Iterable[tuple[str, Any]], read: Callable[[str, Any], Annotated]
) -> list[Annotated]:
    """Every record, read.

    Args:
        path: Of the file, for errors.
        records: Name and content of each record.
        read: From name and content.

    Raises:
        DataError: A record is damaged; the message names file and record.
    """
    items = []
    for name, record in records:
        try:
            items.append(read(name, record))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, DataError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{Path(path).name}, {name}: {what}") from error
    return items


def span(start: Any, end: Any) -> Span:
    """A span of a file.

    Raises:
        DataError: The two are not finite numbers.
    """
    bounds = (float(start), float(end))
    if not all(math.isfinite(b) for b in bounds):
        raise DataError(f"[{start}, {end}] is no stretch of time")
    return Span.of(*bounds)


def text(value: Any) -> str:
    """A text of a file.

    Raises:
        DataError: It is none, or has no letter.
    """
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"has {value!r} where a text is expected")
    return " ".join(value.split())
