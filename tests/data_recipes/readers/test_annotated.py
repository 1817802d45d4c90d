"""Published layouts of annotated videos, whole and damaged; videos under other names, and videos that are not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_recipes.mixtures.temporal import FORMATS, TASKS, temporal
from data_recipes.readers.annotations import MissingMediaWarning
from data_recipes.readers.captions import captions
from data_recipes.readers.folders import MediaFolder
from data_recipes.readers.grounding import charades_sta, didemo, qvhighlights
from data_recipes.readers.nextqa import nextqa
from data_recipes.readers.rtl import rtl
from tests.tiny import tiny_assistant
from vlm.errors import ConfigError, DataError
from vlm.time import Span

CAPTIONS = {
    "v_QOlSCBRmfWY": {
        "duration": 82.73,
        "timestamps": [[17.37, 60.81], [0.83, 19.86]],
        "sentences": [" The girl dances around the room.", "A young woman stands in a room. "],
    }
}
RTL_TRAIN = {
    "v_QOlSCBRmfWY": {
        "duration": 80.0,
        "QA": [{"q": "When does she rest?", "a": "<10.5> <20> Because she has danced until <10.5>."}],
    }
}
RTL_EVAL = [
    {"question_id": f"QOlSCBRmfWY_{i}", "vid": "QOlSCBRmfWY", "question": "When?", "answer": a, "duration": 80.0}
    for i, a in enumerate(("[<30.0> <25.0>] It is so.", "[<70.2> <90>] It ends."))
]
CHARADES = "AO8RW 0.0 6.9##a person is putting a book on a shelf.\nBREFE 4.5 11.25##person opens a door.\n"
CHARADES_CSV = "id,subject,scene,length\nAO8RW,HR43,Bedroom,33.67\nBREFE,HR43,Kitchen,30.1\n"
QV = {
    "qid": 8737,
    "query": "A family is playing basketball together on a green court outside.",
    "duration": 126,
    "vid": "bP5KfdFJzC4_660.0_810.0",
    "relevant_windows": [[0, 16], [30, 34.5]],
    "relevant_clip_ids": [0, 1],
    "saliency_scores": [[4, 1, 1], [4, 1, 1]],
}
DIDEMO = [
    {
        "annotation_id": 1,
        "video": "53010470@N00_5740774494_dc8b.mov",
        "description": "the dog runs away",
        "num_segments": 6,
        "times": [[1, 1], [1, 2], [0, 1], [1, 2]],
        "context": "",
    }
]
NEXTQA = [{"video": "4010069381", "QA": [{"q": "how do the two man play the instrument", "a": "roll the handle"}]}]
NEXTQA_OE = (
    "video,frame_count,width,height,question,answer,qid,type\n4010069381,369,640,480,how do they play,roll,6,CH\n"
)
NEXTQA_MC = (
    "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
    '4010069381,369,640,480,how do they play,0,6,CH,"roll, slowly",tap feet,strum,hit,pat\n'
    "4010069381,369,640,480,why,4,7,CW,a,b,c,d,to show off\n"
)


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def video(folder: Path, name: str) -> Path:
    """A file that stands for a video; nobody opens it."""
    return write(folder / name, "x")


def frames(folder: Path, count: int = 6) -> Path:
    """A folder of frames as LITA's archive has it."""
    folder.mkdir(parents=True)
    for i in range(1, count + 1):
        Image.new("RGB", (32, 32), (40 * i, 0, 0)).save(folder / f"{i:06d}.jpg")
    return folder


def test_dense_captions(tmp_path: Path) -> None:
    video(tmp_path, "v_QOlSCBRmfWY.mp4")
    (item,) = captions(write(tmp_path / "train.json", CAPTIONS), tmp_path).items
    assert (item.video, item.duration) == ("v_QOlSCBRmfWY", 82.73)
    assert [(e.text, e.spans) for e in item.events] == [
        ("The girl dances around the room.", (Span(17.37, 60.81),)),
        ("A young woman stands in a room.", (Span(0.83, 19.86),)),
    ]


def test_rtl_of_training_and_of_evaluation(tmp_path: Path) -> None:
    video(tmp_path, "v_QOlSCBRmfWY.mkv")
    (item,) = rtl(write(tmp_path / "train.json", RTL_TRAIN), tmp_path).items
    (question,) = item.questions
    assert question.answer == "{t:10.50} {t:20.00} Because she has danced until {t:10.50}."
    assert question.spans == (Span(10.5, 20.0),)
    (item,) = rtl(write(tmp_path / "eval.json", RTL_EVAL), tmp_path).items
    assert [q.id for q in item.questions] == ["QOlSCBRmfWY_0", "QOlSCBRmfWY_1"]
    assert [q.spans for q in item.questions] == [(Span(25.0, 30.0),), (Span(70.2, 80.0),)], "in order, inside the clip"
    assert item.questions[1].answer == "{t:70.20} {t:80.00} It ends."


def test_charades_sta(tmp_path: Path) -> None:
    video(tmp_path, "AO8RW.mp4")
    video(tmp_path, "BREFE.mp4")
    path, lengths = write(tmp_path / "sta.txt", CHARADES), write(tmp_path / "c.csv", CHARADES_CSV)
    one, two = charades_sta(path, tmp_path, lengths=lengths).items
    assert (one.duration, one.events[0].spans) == (33.67, (Span(0.0, 6.9),))
    assert two.events[0].text == "person opens a door."
    assert charades_sta(path, tmp_path).items[0].duration is None


def test_qvhighlights_has_several_windows(tmp_path: Path) -> None:
    video(tmp_path, "bP5KfdFJzC4_660.0_810.0.mp4")
    (item,) = qvhighlights(write(tmp_path / "train.jsonl", json.dumps(QV) + "\n\n"), tmp_path).items
    assert item.events[0].spans == (Span(0, 16), Span(30, 34.5)) and item.duration == 126


def test_didemo_takes_what_most_annotators_chose(tmp_path: Path) -> None:
    video(tmp_path, "53010470@N00_5740774494_dc8b.mp4")  # often converted, so with another suffix
    (item,) = didemo(write(tmp_path / "train.json", DIDEMO), tmp_path).items
    assert item.events[0].spans == (Span(5.0, 15.0),)


@pytest.mark.parametrize(
    ("name", "content", "answers"),
    [
        ("p.json", NEXTQA, ["roll the handle"]),
        ("oe.csv", NEXTQA_OE, ["roll"]),
        ("mc.csv", NEXTQA_MC, ["roll, slowly", "to show off"]),
    ],
)
def test_nextqa(tmp_path: Path, name: str, content: Any, answers: list[str]) -> None:
    video(tmp_path, "1106/4010069381.mp4")
    (item,) = nextqa(write(tmp_path / name, content), tmp_path).items
    assert [q.answer for q in item.questions] == answers


def test_videos_are_found_under_both_names_and_in_folders(tmp_path: Path) -> None:
    video(tmp_path, "a/plain.MP4")
    video(tmp_path, "b/v_marked.webm")
    frames(tmp_path / "frames" / "v_drawn")
    folder = MediaFolder(tmp_path)
    assert folder.find("v_plain") == folder.find("plain") == folder.find("a/plain.MP4") == tmp_path / "a/plain.MP4"
    assert folder.find("marked") == folder.find("marked.mp4") == tmp_path / "b/v_marked.webm"
    assert folder.find("drawn") == folder.find("v_drawn") == tmp_path / "frames/v_drawn"
    assert folder.find("other") is None and folder.find("lain") is None
    with pytest.raises(DataError, match="no folder"):
        MediaFolder(tmp_path / "nothing")


def test_missing_videos_are_counted_and_named(tmp_path: Path) -> None:
    video(tmp_path, "AO8RW.mp4")
    with pytest.warns(MissingMediaWarning, match="1 of 2 videos .*: BREFE"):
        read = charades_sta(write(tmp_path / "sta.txt", CHARADES), tmp_path)
    assert len(read) == 1 and read.missing == ("BREFE",)
    with pytest.raises(DataError, match="none of the 1 videos"):
        captions(write(tmp_path / "c.json", CAPTIONS), tmp_path)


@pytest.mark.parametrize(
    ("form", "content", "words"),
    [
        ("captions", "{", "no JSON"),
        ("captions", "[]", "list"),
        ("captions", "{}", "annotates nothing"),
        ("captions", {"v_a": {"timestamps": [], "sentences": []}}, "v_a: lacks 'duration'"),
        ("captions", {"v_a": {"duration": 5, "timestamps": [[0, 1]], "sentences": []}}, "v_a"),
        ("captions", {"v_a": {"duration": 5, "timestamps": [[0, "x"]], "sentences": ["b"]}}, "v_a"),
        ("captions", {"v_a": {"duration": 5, "timestamps": [[0, float("nan")]], "sentences": ["b"]}}, "no stretch of time"),
        ("captions", {"v_a": {"duration": 5, "timestamps": [[0, 1]], "sentences": [" "]}}, "a text is expected"),
        ("captions", {"v_a": 3}, "v_a"),
        ("rtl", {"v_a": {"duration": 5, "QA": [{"q": "?", "a": "at 3 s"}]}}, "fewer than two times"),
        ("rtl", [{"vid": "a"}], "lacks 'duration'"),
        ("rtl", [3], "record lacks"),
        ("charades_sta", "a 0 1 b.", "line 1: .* no '##'"),
        ("charades_sta", "a 0##b.", "line 1"),
        ("qvhighlights", "\n{]", "line 2"),
        ("qvhighlights", {"vid": "a", "duration": 3, "query": "b"}, "relevant_windows"),
        ("didemo", {}, "dict, not a list"),
        ("didemo", [{"video": "a", "description": "b", "times": []}], "record 1"),
        ("nextqa", [{"video": "a"}], "lacks 'QA'"),
        ("nextqa", [{"video": "a", "QA": [{"q": "b"}]}], "a: lacks 'a'"),
    ],
)  # fmt: skip
def test_damaged_files_say_where(tmp_path: Path, form: str, content: Any, words: str) -> None:
    video(tmp_path, "a.mp4")
    with pytest.raises(DataError, match=words):
        FORMATS[form](write(tmp_path / "x.json", content), tmp_path)


@pytest.mark.parametrize("form", FORMATS)
def test_files_that_are_not_there(tmp_path: Path, form: str) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        FORMATS[form](tmp_path / "x.json", tmp_path)


def test_every_task_asks_and_answers(tmp_path: Path) -> None:
    video(tmp_path, "v_QOlSCBRmfWY.mp4")
    path = write(tmp_path / "c.json", CAPTIONS)
    dense = temporal(task="dense", format="captions", path=path, media=tmp_path, size=20)
    _, answer = dense[0].meta["turns"][0]
    assert answer == ("{t:0.83-19.86} A young woman stands in a room. {t:17.37-60.81} The girl dances around the room.")
    assert len({dense[i].meta["turns"][0][0] for i in range(20)}) > 5, "worded in several ways"
    local = temporal(task="localise", format="captions", path=path, media=tmp_path, size=20, num_frames=100)
    assert {local[i].meta["turns"][0][1] for i in range(20)} == {"{t:0.83-19.86}", "{t:17.37-60.81}"}
    assert any('"the girl dances around the room"' in local[i].meta["turns"][0][0] for i in range(20))
    assert local[3].messages == local[3].messages and local[3].meta == local[3].meta
    assert local[0].messages[0]["content"][0] == {
        "type": "video", "video": str(tmp_path / "v_QOlSCBRmfWY.mp4"), "num_frames": 100,
    }  # fmt: skip
    reason = temporal(task="reasoning", format="rtl", path=write(tmp_path / "r.json", RTL_TRAIN), media=tmp_path)
    assert len(reason) == 1 and reason[0].meta["turns"][0][0] == "When does she rest?"
    assert reason[0].meta["spans"] == (Span(10.5, 20.0),)
    video(tmp_path, "4010069381.mp4")
    short = temporal(task="qa", format="nextqa", path=write(tmp_path / "n.csv", NEXTQA_MC), media=tmp_path)
    assert (
        len(short) == 2 and short[1].meta["turns"][0][0].startswith("why") and "phrase" in short[1].meta["turns"][0][0]
    )


def test_events_twice_are_both_answered(tmp_path: Path) -> None:
    video(tmp_path, "bP5KfdFJzC4_660.0_810.0.mp4")
    path = write(tmp_path / "q.jsonl", json.dumps(QV))
    local = temporal(task="localise", format="qvhighlights", path=path, media=tmp_path)
    assert local[0].meta["turns"][0][1] == "{t:0.00-16.00}, {t:30.00-34.50}"


def test_a_folder_of_frames_lasts_as_long_as_annotated(tmp_path: Path) -> None:
    """LITA's archive: JPEG frames, the duration in the annotations only."""
    frames(tmp_path / "v_QOlSCBRmfWY", count=6)
    path = write(
        tmp_path / "c.json", {"v_QOlSCBRmfWY": {"duration": 60.0, "timestamps": [[30, 60]], "sentences": ["b"]}}
    )
    sample = temporal(task="localise", format="captions", path=path, media=tmp_path, num_frames=6)[0]
    example = (tiny := tiny_assistant(time={"codec": "relative", "num_tokens": 11})).processor.training_example(
        sample.messages
    )
    said = tiny.processor.tokenizer.decode([i for i in example["labels"].flatten().tolist() if i != -100])
    assert said.startswith("<t5><t10>") or said.startswith("<t5> <t10>")


def test_misuse_is_explained(tmp_path: Path) -> None:
    video(tmp_path, "v_QOlSCBRmfWY.mp4")
    given: dict[str, Any] = {"path": write(tmp_path / "c.json", CAPTIONS), "media": tmp_path}
    with pytest.raises(ConfigError, match=", ".join(TASKS)):
        temporal(task="guess", format="captions", **given)
    with pytest.raises(ConfigError, match="didemo"):
        temporal(task="dense", format="lvis", **given)
    with pytest.raises(DataError, match="nothing for task='reasoning'"):
        temporal(task="reasoning", format="captions", **given)
    with pytest.raises(ConfigError, match="lengths"):
        temporal(task="dense", format="captions", lengths="x.csv", **given)
