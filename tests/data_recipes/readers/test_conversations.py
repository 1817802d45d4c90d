"""Files of conversations in both layouts, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_recipes.readers.conversations import conversations, texts
from tests.tiny import tiny_assistant
from vlm.errors import DataError

OPENAI = {
    "id": "a",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "video", "video": "a.mp4", "num_frames": 8}, {"type": "text", "text": "When?"}],
        },
        {"role": "assistant", "content": "from {t:1.0} to {t:2.5}"},
    ],
}
LLAVA = {
    "id": 7,
    "image": ["x.jpg", "y.jpg"],
    "conversations": [
        {"from": "human", "value": "<image>\nand <image>: what differs?"},
        {"from": "gpt", "value": "The colour."},
    ],
}
UNPLACED = {
    "video": "v.mp4",
    "conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A dog."}],
}


def write(path: Path, records: list[Any], *, lines: bool) -> Path:
    text = "\n".join(json.dumps(r) for r in records) + "\n\n" if lines else json.dumps(records, indent=1)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("lines", [True, False])
def test_both_layouts_become_messages(tmp_path: Path, lines: bool) -> None:
    data = conversations(write(tmp_path / "d.json", [OPENAI, LLAVA, UNPLACED], lines=lines), media="/m")
    assert len(data) == 3 and [data[i].id for i in range(3)] == ["a", "7", "d-2"]
    system, question, answer = data[0].messages
    assert system["content"] == [{"type": "text", "text": "Be brief."}]
    assert question["content"][0] == {"type": "video", "video": "/m/a.mp4", "num_frames": 8}
    assert answer["content"][0]["text"] == "from {t:1.0} to {t:2.5}"
    parts = data[1].messages[0]["content"]
    assert [p["type"] for p in parts] == ["image", "text", "image", "text"]
    assert [p.get("image") or p["text"] for p in parts] == ["/m/x.jpg", "and ", "/m/y.jpg", ": what differs?"]
    assert [m["role"] for m in data[1].messages] == ["user", "assistant"]
    assert data[2].messages[0]["content"][0] == {"type": "video", "video": "/m/v.mp4"}
    with pytest.raises(IndexError):
        data[3]


def test_media_lie_beside_the_file_by_default_and_the_processor_reads_them(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(clip.read_bytes())
    data = conversations(write(tmp_path / "d.jsonl", [UNPLACED], lines=True))
    example = tiny_assistant().processor.training_example(data[0].messages, num_frames=4)
    assert example["frames_per_medium"].tolist() == [4] and int((example["labels"] != -100).sum()) > 3


def test_every_word_of_a_text_is_a_target(tmp_path: Path) -> None:
    data = texts(write(tmp_path / "d.jsonl", [{"text": "one two"}, {"meta": 1}], lines=True))
    example = tiny_assistant().processor.training_example(data[0].messages)
    assert int((example["labels"] != -100).sum()) >= len("one two")
    with pytest.raises(DataError, match=r"d.jsonl, record 2: lacks 'text'"):
        data[1]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"conversations": [{"from": "human", "value": "<image>"}]}, "more <image> placeholders"),
        ({**LLAVA, "image": ["x.jpg", "y.jpg", "z.jpg"]}, "more media than placeholders: 'z.jpg'"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "robot"),
        ({"conversations": [{"from": "human", "value": 3}]}, "3 where a text"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "'smell' is not one of"),
        ({"text": "x"}, "conversations"),
        ([1, 2], "list instead of an object"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, record: Any, message: str) -> None:
    data = conversations(write(tmp_path / "d.jsonl", [OPENAI, record], lines=True))
    assert data[0].id == "a"
    with pytest.raises(DataError, match=r"d.jsonl, record 2: .*" + message):
        data[1]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing.jsonl cannot be read: No such file"):
        conversations(tmp_path / "missing.jsonl")
    (tmp_path / "half.json").write_text("[1, 2")
    with pytest.raises(DataError, match=r"half.json is no JSON list"):
        conversations(tmp_path / "half.json")
    (tmp_path / "half.jsonl").write_text(json.dumps(OPENAI) + '\n{"messages": [')
    data = conversations(tmp_path / "half.jsonl")
    assert data[0].id == "a"
    with pytest.raises(DataError, match="record 2: no JSON"):
        data[1]
