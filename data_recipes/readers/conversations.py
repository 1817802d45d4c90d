"""Conversations in JSON or JSON Lines, in the two layouts that people have: OpenAI/HF-style messages, and LLaVA's.

    {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "When?"}]}, ...]}
    {"id": "7", "video": "a.mp4", "conversations": [{"from": "human", "value": "<video>\\nWhen?"}, {"from": "gpt", "value": "..."}]}

In answers a time is written as ``{t:12.34}`` (seconds). A line is parsed when it is asked for; media are paths until the processor loads
them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.sample import Message, Sample, assistant, text_part
from vlm.errors import DataError

_KINDS = ("image", "video", "audio")
_PLACEHOLDER = re.compile(r"\n?<(image|video|audio)>\n?")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass
class Conversations:
    """A file of conversations; item ``i`` is its i-th record.

    Attributes:
        path: A JSON list, or JSON Lines.
        media: Folder that relative paths of media start from.
        records: Where each line starts, or the records of a list.
        text_key: Records are plain texts under this key: one assistant turn each, every word of which is a target.
    """

    path: Path
    media: Path
    records: np.ndarray | list[Any]
    text_key: str | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """A conversation.

        Raises:
            DataError: The record is damaged; the message names file and record.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.path}")
        where = f"{self.path.name}, record {index + 1}"
        record = self._record(index, where)
        try:
            if self.text_key is not None:
                return Sample(f"{self.path.stem}-{index}", [assistant(_string(record[self.text_key]))])
            messages = self._messages(record)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{where}: {what}") from error
        return Sample(str(record.get("id", f"{self.path.stem}-{index}")), messages, {"record": index})

    def _record(self, index: int, where: str) -> dict[str, Any]:
        record: Any = self.records[index]
        if isinstance(self.records, np.ndarray):
            with open(self.path, "rb") as file:
                file.seek(int(self.records[index]))
                line = file.readline()
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(f"{where}: no JSON ({error}): {line[:60]!r}") from error
        if not isinstance(record, dict):
            raise DataError(f"{where}: {type(record).__name__} instead of an object with messages or conversations")
        return record

    def _messages(self, record: dict[str, Any]) -> list[Message]:
        if "messages" in record:
            return [self._message(m) for m in record["messages"]]
        given = [(k, p) for k in _KINDS for p in _listed(record.get(k))]
        paths = {kind: iter([p for k, p in given if k == kind]) for kind in _KINDS}
        messages: list[dict[str, Any]] = []
        for turn in record["conversations"]:
            role = _ROLES[turn["from"]]
            messages.append({"role": role, "content": list(self._parts(_string(turn["value"]), paths))})
        left = [p for rest in paths.values() for p in rest]
        if left:  # LLaVA's files often say nowhere where the picture belongs
            if len(left) < len(given):
                raise ValueError(f"has more media than placeholders: {left[0]!r}")
            first = next(m for m in messages if m["role"] == "user")
            first["content"][:0] = [self._medium(kind, path) for kind, path in given]
        return messages

    def _message(self, message: Message) -> Message:
        content = message["content"]
        if isinstance(content, str):
            return {"role": message["role"], "content": [text_part(content)]}
        return {"role": message["role"], "content": [self._part(part) for part in content]}

    def _part(self, part: dict[str, Any]) -> dict[str, Any]:
        kind = part["type"]
        if kind == "text":
            return {"type": "text", "text": _string(part["text"])}
        if kind not in _KINDS:
            raise ValueError(f"content part of type {kind!r} is not one of text, {', '.join(_KINDS)}")
        given = next(part[k] for k in (kind, "path", "url") if k in part)
        return {**part, **self._medium(kind, given)}

    def _parts(self, value: str, paths: dict[str, Iterator[str]]) -> Iterator[dict[str, Any]]:
        pieces = _PLACEHOLDER.split(value)
        for text, kind in zip(pieces[::2], [*pieces[1::2], None], strict=True):
            if text:
                yield text_part(text)
            if kind is not None:
                path = next(paths[kind], None)
                if path is None:
                    raise ValueError(f"has more <{kind}> placeholders than {kind}s")
                yield self._medium(kind, path)

    def _medium(self, kind: str, path: str) -> dict[str, Any]:
        return {"type": kind, kind: str(self.media / _string(path))}


def conversations(path: str | Path, *, media: str | Path | None = None) -> Conversations:
    """Read a file of conversations.

    Args:
        path: A JSON list, or JSON Lines (recognised by the first character).
        media: Folder that relative paths of media start from; default: the file's own.

    Raises:
        DataError: The file does not exist, or is a damaged list.
    """
    found = Path(path)
    return Conversations(found, Path(media) if media is not None else found.parent, _records(found))


def texts(path: str | Path, *, key: str = "text") -> Conversations:
    """Read plain texts: one assistant turn each, every word of which is a target (continued pre-training, context extension).

    Args:
        path: As in `conversations`.
        key: Where a record has its text.

    Raises:
        DataError: As in `conversations`.
    """
    found = Path(path)
    return Conversations(found, found.parent, _records(found), key)


def _records(path: Path) -> np.ndarray | list[Any]:
    try:
        with open(path, "rb") as file:
            head = file.read(64).lstrip()[:1]
            file.seek(0)
            if head == b"[":
                records: list[Any] = json.load(file)
                return records
            starts, place = [], 0
            for line in file:
                if line.strip():
                    starts.append(place)
                place += len(line)
            return np.array(starts, np.int64)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON list: {error}") from error


def _listed(value: Any) -> list[str]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"has {value!r} where a text is expected")
    return value
