"""Questions that need reasoning, made: by a writer that is right, wrong, or interrupted, and from the drawn world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_recipes.mixtures.temporal import temporal
from data_recipes.readers.annotations import Annotations, Event
from data_recipes.readers.captions import captions
from data_recipes.readers.rtl import rtl
from data_recipes.rtl import generate, make, prompt, restates, shapes_videos
from vlm.cli import main
from vlm.errors import ConfigError, DataError
from vlm.media import load_video
from vlm.time import Span

DOG = {
    "duration": 30.0,
    "timestamps": [[0, 10], [12, 20]],
    "sentences": ["A dog chases a ball.", "It lies down, tired."],
}
GOOD = {"question": "Why does it rest, and when?", "start": 12, "end": 20.2, "explanation": "It has run."}
BAD = [
    {"question": "When does the dog chase the ball?", "start": 0, "end": 10, "explanation": "It says so."},
    {"question": "When is it over?", "start": 50, "end": 60, "explanation": "Late."},
    {"question": "When?", "start": 9, "end": 3, "explanation": "Backwards."},
    {"question": "When?", "start": "soon", "end": 3, "explanation": "Unclear."},
    {"question": "", "start": 1, "end": 3, "explanation": "Empty."},
    "When?",
]


class Writer:
    """Answers in turn; breaks after ``stops`` answers."""

    name = "test"

    def __init__(self, *replies: str, stops: int | None = None) -> None:
        self.replies, self.stops, self.asked = replies, stops, list[str]()

    def complete(self, prompt: str, **_: Any) -> str:
        if self.stops is not None and len(self.asked) >= self.stops:
            raise DataError("out of reach")
        self.asked.append(prompt)
        return self.replies[(len(self.asked) - 1) % len(self.replies)]


@pytest.fixture
def source(tmp_path: Path) -> Annotations:
    for name in "abc":
        (tmp_path / f"v_{name}.mp4").touch()
    (tmp_path / "captions.json").write_text(json.dumps({f"v_{name}": DOG for name in "abc"}))
    return captions(tmp_path / "captions.json", tmp_path)


def test_what_a_writer_says_is_checked(source: Annotations, tmp_path: Path) -> None:
    writer = Writer(f"Here you are:\n```json\n{json.dumps([GOOD, *BAD])}\n```", "I cannot.", json.dumps([GOOD]))
    report = generate(source, writer, tmp_path / "rtl.json")
    assert (report.videos, report.kept) == (3, 2)
    assert report.dropped == {
        "repeats a caption": 1, "times outside the video": 2, "no question with two times": 3, "no JSON list": 1,
    }  # fmt: skip
    items = rtl(tmp_path / "rtl.json", tmp_path).items
    assert [i.video for i in items] == ["v_a", "v_c"]
    assert items[0].questions[0].spans == (Span(12.0, 20.2),)
    assert items[0].questions[0].answer == "{t:12.00} {t:20.20} It has run."
    assert "[12.0 - 20.0] It lies down, tired." in writer.asked[0] and "30.0 s" in writer.asked[0]
    assert not list(tmp_path.glob("*.part"))


def test_it_goes_on_where_it_stopped(source: Annotations, tmp_path: Path) -> None:
    out = tmp_path / "rtl.json"
    with pytest.raises(DataError, match="out of reach"):
        generate(source, Writer(json.dumps([GOOD]), stops=2), out)
    assert not out.exists()
    part = tmp_path / "rtl.json.part"
    part.write_text(part.read_text() + '{"key": "cut')  # killed while writing
    again = Writer(json.dumps([GOOD]))
    assert generate(source, again, out).kept == 3 and len(again.asked) == 1
    other = Writer(json.dumps([GOOD]), stops=1)
    with pytest.raises(DataError):
        generate(source, other, out, seed=1)
    renamed = Writer(json.dumps([GOOD]))
    renamed.name = "another"
    assert generate(source, renamed, out, seed=1).kept == 3 and len(renamed.asked) == 3, "its own answers only"


@pytest.mark.parametrize(
    ("question", "span", "repeats"),
    [
        ("When does the dog chase the ball?", Span(0, 10), True),
        ("When is the dog chasing a ball?", Span(1, 9), True),
        ("When does the dog chase the ball?", Span(12, 20), False),
        ("When is the animal exhausted after playing with its toy?", Span(12, 20), False),
        ("When?", Span(0, 10), False),
    ],
)
def test_repeating_a_caption(question: str, span: Span, repeats: bool) -> None:
    events = [Event((Span(0, 10),), "A dog chases a ball."), Event((Span(12, 20),), "It lies down, tired.")]
    assert restates(question, span, events) is repeats


def test_drawn_clips_need_no_writer(tmp_path: Path) -> None:
    report = shapes_videos(tmp_path, count=4, split="heldout", level="short")
    assert report.videos == 4 and report.kept > 0
    read = rtl(tmp_path / "rtl.json", tmp_path / "videos")
    assert sum(len(i.questions) for i in read.items) == report.kept and not read.missing
    for item, path in zip(read.items, read.paths, strict=True):
        assert item.duration is not None
        assert load_video(path, num_frames=2).duration == pytest.approx(item.duration, abs=0.05)
        assert all(0 <= s.start < s.end <= item.duration + 0.01 for q in item.questions for s in q.spans)
    before = (tmp_path / "rtl.json").read_bytes()
    stamp = read.paths[0].stat().st_mtime_ns
    shapes_videos(tmp_path, count=4, split="heldout", level="short")
    assert (tmp_path / "rtl.json").read_bytes() == before and read.paths[0].stat().st_mtime_ns == stamp
    lines = temporal(task="reasoning", format="rtl", path=tmp_path / "rtl.json", media=tmp_path / "videos")
    assert len(lines) == report.kept


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "rtl", "shapes", "--count", "2", "--out", str(tmp_path / "x")]) == 0
    assert "questions about 2 videos" in capsys.readouterr().out
    assert main(["data", "rtl", str(tmp_path / "c.json")]) != 0
    assert "--writer" in capsys.readouterr().err


def test_misuse_is_explained(source: Annotations, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="per_video=0"):
        generate(source, Writer(""), tmp_path / "x.json", per_video=0)
    with pytest.raises(ConfigError, match="count=0"):
        shapes_videos(tmp_path, count=0)
    with pytest.raises(ConfigError, match="writer"):
        make(str(tmp_path / "captions.json"), tmp_path / "x.json")
    assert "Write 5 questions" in prompt(source.items[0], 5)
