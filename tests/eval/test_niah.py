"""Needle in a haystack as a whole: results files, resuming, killed runs, several processes, the verb on a real model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.needles import NeedleSet
from eval.niah import Search, choose_haystack, choose_needles, evaluate, numbers_in, run
from eval.niah_parts import Ranks
from eval.niah_sets import SET_FILE, digits
from eval.niah_tasks import Retrieve
from eval.niah_trials import NO_NEEDLE, Task
from eval.report import read_results
from tests.eval.oracles import SIZE, Noise, Oracle
from vlm.chat import Assistant
from vlm.cli import main
from vlm.errors import ConfigError, DataError
from vlm.media import Video

ROOT = Path(__file__).resolve().parents[2]
DEPTHS = (0.0, 0.5, 1.0)
DIGITS = digits(SIZE)
TOTAL = 2 * 2 * 9  # free and forced, two needles, 2 x 4 cells and the needles alone
GRID = ["lengths=3,4,5", "depths=3", "--limit", "3"]


def job(count: int = 3) -> Task:
    return Retrieve(DIGITS.first(count))


def measured(model: Oracle, out: Path, count: int = 2, **options: Any) -> dict[str, Any]:
    options = {"name": "oracle", "lengths": (2, 5), "depths": DEPTHS, **options}
    path = evaluate(model, options.pop("haystack", Noise()), job(count), out=out, **options)
    return read_results(path)


def values(content: dict[str, Any]) -> dict[str, float]:
    return {r["name"]: r["value"] for r in content["rows"]}


def test_results_hold_every_cell_and_both_scores(tmp_path: Path) -> None:
    content = measured(Oracle(list(DIGITS.needles)), tmp_path, 3, target=99.5)
    found = values(content)
    assert found["free: all cells"] == found["forced: all cells"] == 100
    assert found["free: no needle"] == 0
    assert found["free: needle alone"] == 100
    assert found["free: depth 1.00, the needle is the last frame"] == 100
    assert found["chance: guessing among the answers"] == pytest.approx(100 / 3)
    assert content["rows"][0]["holds"] is True
    one = next(r for r in content["rows"] if r["name"] == "free: 5 frames, depth 0.50")["setting"]
    assert one["trials"] == one["right"] == 3
    assert one["tokens"] == 4 * 6 + len("What digit is shown?")
    assert (one["low"], one["high"]) == (43.8, 100.0)
    assert one["free"] == {"retrieve": "1 1 1"}
    assert content["setting"]["complete"] is True
    assert np.asarray(Image.open(tmp_path / "niah.png")).size > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["niah.json", "niah.png"]


@dataclass
class Tired(Oracle):
    """Is interrupted after so many questions."""

    patience: int = 12

    def forced_match(self, video: Video, question: str, answer: str) -> bool:
        if len(self.asked) > self.patience:
            raise KeyboardInterrupt
        return super().forced_match(video, question, answer)


@pytest.mark.parametrize("patience", [1, 15])
def test_an_interrupted_run_is_continued_needle_by_needle(patience: int, tmp_path: Path) -> None:
    needles = list(DIGITS.needles)
    with pytest.raises(KeyboardInterrupt):
        measured(Tired(needles, patience=patience), tmp_path)
    second = Oracle(needles)
    content = measured(second, tmp_path)
    assert len(second.asked) == TOTAL - 2 * ((patience + 1) // 2)
    again = Oracle(needles)
    measured(again, tmp_path)
    assert again.asked == []
    whole = Oracle(needles)
    assert measured(whole, tmp_path, fresh=True)["rows"] == content["rows"]
    assert len(whole.asked) == TOTAL


def test_results_of_different_measurements_never_mix(tmp_path: Path) -> None:
    needles = list(DIGITS.needles)
    with pytest.raises(KeyboardInterrupt):
        measured(Tired(needles, patience=20), tmp_path)
    for change in ({"name": "another model"}, {"seed": 1}, {"haystack": Noise("other noise")}, {"count": 3}):
        other = Oracle(needles)
        options: dict[str, Any] = {"depths": (0.0,), **change}
        measured(other, tmp_path, **options)
        assert len(other.asked) == 2 * options.get("count", 2) * 5
    same = Oracle(needles)
    measured(same, tmp_path)
    assert len(same.asked) == TOTAL - 20, "its part is still there; the file was another's"


def test_the_file_so_far_says_that_it_is_not_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.niah.WRITE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        measured(Tired(list(DIGITS.needles), patience=15), tmp_path)
    half = read_results(tmp_path / "niah.json")
    assert half["setting"]["complete"] is False
    assert [r["name"] for r in half["rows"] if "depth" in r["setting"] and r["name"].startswith("free")] == [
        "free: needle alone", "free: 2 frames, no needle", "free: 2 frames, depth 0.00", "free: 2 frames, depth 0.50"
    ]  # fmt: skip


def test_a_grid_that_grows_keeps_what_it_has(tmp_path: Path) -> None:
    needles = list(DIGITS.needles)
    measured(Oracle(needles), tmp_path)
    more = Oracle(needles)
    content = measured(more, tmp_path, lengths=(2, 5, 7))
    assert set(more.asked) <= {7, 8}
    assert content["setting"]["complete"] is True


def test_ranks_share_the_work_and_rank_0_writes_the_same_file(tmp_path: Path) -> None:
    needles = list(DIGITS.needles)
    alone = measured(Oracle(needles), tmp_path / "alone", 3)
    models = [Oracle(needles) for _ in range(3)]
    for rank in (2, 1, 0):
        measured_by = evaluate(models[rank], Noise(), job(3), name="oracle", lengths=(2, 5), depths=DEPTHS, out=tmp_path,
                               ranks=Ranks(rank, 3))  # fmt: skip
        assert measured_by.exists() is (rank == 0)
    together = read_results(tmp_path / "niah.json")
    assert together["rows"] == alone["rows"]
    assert together["setting"] == alone["setting"]
    assert [len(m.asked) for m in models] == [2 * 9] * 3
    with pytest.raises(ConfigError, match="fresh=true"):
        measured(Oracle(needles), tmp_path, fresh=True, ranks=Ranks(0, 2))


def test_a_haystack_that_is_too_short_is_named(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Short(Noise):
        def __call__(self, num_frames: int) -> Video:
            return super().__call__(min(num_frames, 3))

    with pytest.raises(DataError, match="'noise' gave 3 frames instead of 5"):
        measured(Oracle(list(DIGITS.needles)), tmp_path, haystack=Short())


def test_haystacks_are_made_once_per_length() -> None:
    made: list[int] = []

    @dataclass(frozen=True)
    class Counted(Noise):
        def __call__(self, num_frames: int) -> Video:
            made.append(num_frames)
            return super().__call__(num_frames)

    search = Search(Oracle(list(DIGITS.needles)), Counted(), job(), (2, 5, 2), DEPTHS)
    assert search.plan[1:4] == [(2, NO_NEEDLE), (2, 0.0), (2, 0.5)]
    for unit in search.units:
        search.measure(unit)
    assert made == [1, 2, 5]


# -- the verb, on the smallest real model ------------------------------------------------------------------------------


def command(out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "eval", "niah", *GRID, "--out", str(out), *options]


def started(out: Path, *options: str, **environment: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        command(out, *options), cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


@pytest.fixture(scope="module")
def serial(nano: Assistant, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("serial")
    run(limit=3, out=out, lengths="3,4,5", depths=3)
    return read_results(out / "niah.json")


def test_two_processes_of_which_one_is_killed_give_the_file_of_one(
    serial: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zero, one = (started(tmp_path, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank)) for rank in (0, 1))
    deadline = time.monotonic() + 120
    while not (parts := [p for p in tmp_path.glob(".*/rank1.jsonl") if b"\n" in p.read_bytes()]):
        assert one.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    one.send_signal(signal.SIGKILL)
    one.communicate(timeout=60)
    assert 1 <= parts[0].read_bytes().count(b"\n") < 19, "killed in the middle of its nineteen"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    run(limit=3, out=tmp_path, lengths="3,4,5", depths=3)
    errors = zero.communicate(timeout=120)[1]
    assert zero.returncode == 0, errors.decode()
    together = read_results(tmp_path / "niah.json")
    for key in ("rows", "setting", "command"):
        assert together[key] == serial[key]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["niah.json", "niah.png"]


def test_the_verb_says_how_it_is_repeated(serial: dict[str, Any]) -> None:
    assert (
        serial["command"]
        == "vlm eval niah task=retrieve lengths=3,4,5 depths=3 mode=insert seed=0 --model nano --limit 3"
    )
    assert serial["setting"]["needles"].startswith("3 digits, sha256")
    assert serial["setting"]["haystack"] == "scenes of shapes in motion, seed 0, 64 px"


@pytest.mark.parametrize("task", ["distract", "when", "several", "order", "count", "absent", "sound"])
def test_every_task_runs_on_nano(task: str, nano: Assistant, tmp_path: Path) -> None:
    run(task=task, limit=2, k=2, out=tmp_path, lengths="4", depths=2)
    found = values(read_results(tmp_path / f"niah-{task}.json"))
    kinds = {"absent": ("present", "absent"), "sound": ("how many", "when")}.get(task, ())
    assert all(f"{score}: all cells, {kind}" in found for score in ("free", "forced") for kind in kinds)
    assert any(name.startswith("chance: ") for name in found)
    assert (tmp_path / f"niah-{task}.png").exists()


def test_anybodys_needles_in_anybodys_video(nano: Assistant, clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.fromarray(digits(64).needles[4].image).save(folder / "four.png")
    entry = {"image": "four.png", "question": "What digit is shown?", "answer": "4"}
    (folder / SET_FILE).write_text(json.dumps({"needles": [entry]}))
    run(needles=str(folder), haystack=str(clip), out=tmp_path, lengths="6", depths=2, mode="replace")
    content = read_results(tmp_path / "niah.json")
    assert values(content)["free: needle alone"] == 100
    assert content["setting"]["haystack"].startswith("clip.mp4, sha256")
    assert content["setting"]["needles"].startswith("1 mine, sha256")
    assert str(tmp_path) not in json.dumps(content)


def test_defaults_follow_the_eyes_and_the_task(nano: Assistant) -> None:
    @dataclass
    class Asked:
        assistant: Assistant

    asked = Asked(nano)
    kinds = {}
    for task in ("retrieve", "absent", "order", "count"):
        needles = choose_needles(task, None, asked, size=64, seed=0, limit=None)
        assert isinstance(needles, NeedleSet)
        kinds[task] = (needles.name, choose_haystack(None, needles, size=64, seed=0).name.split(" in ")[0])
    assert kinds["retrieve"] == kinds["absent"] == ("digits", "scenes of shapes")
    assert kinds["order"] == kinds["count"] == ("shapes", "scenes of digits")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"task": "find"}, "task='find'"),
        ({"mode": "glue"}, "mode='glue'"),
        ({"depths": 0}, "depths=0"),
        ({"lengths": "8,x"}, "lengths='8,x'"),
        ({"lengths": "0"}, "lengths='0'"),
        ({"k": 1, "task": "order"}, "k=1"),
        ({"period": 1, "task": "distract"}, "period=1"),
        ({"needles": "nowhere"}, "needles='nowhere'"),
        ({"haystack": "nowhere.mp4"}, "haystack='nowhere.mp4'"),
        ({"needles": "beeps"}, "use task=sound"),
        ({"needles": "digits", "task": "sound"}, "beeps or speech"),
    ],
)
def test_bad_options_are_named(nano: Assistant, options: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=match):
        run(out=tmp_path, limit=2, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_ears_is_not_asked_to_hear(nano: Assistant) -> None:
    @dataclass
    class Asked:
        assistant: Any

    deaf = Asked(replace(nano, processor=replace_ears(nano)))
    with pytest.raises(ConfigError, match="ears"):
        choose_needles("sound", None, deaf, size=64, seed=0, limit=None)


def replace_ears(nano: Assistant) -> Any:
    from vlm.processor import VLMProcessor

    old = nano.processor
    return VLMProcessor(old.tokenizer, old.pixels, old.layout, None)


def test_a_tag_ends_the_names_of_the_files(nano: Assistant, tmp_path: Path) -> None:
    assert main(["eval", "niah", "lengths=3", "depths=1", "tag=3", "--limit", "1", "--out", str(tmp_path)]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["niah-3.json", "niah-3.png"]
    assert read_results(tmp_path / "niah-3.json")["command"].endswith("tag=3 --model nano --limit 1")
    with pytest.raises(ConfigError, match=r"tag=.\.\./mine"):
        run(tag="../mine", out=tmp_path)


def test_lengths_are_numbers() -> None:
    assert numbers_in("8,16, 32") == [8, 16, 32]


@pytest.mark.slow
def test_nano_finds_needles(nano: Assistant, tmp_path: Path) -> None:
    run(model="nano", out=tmp_path, lengths="8,64", depths=3)
    found = values(read_results(tmp_path / "niah.json"))
    assert found["free: all cells"] > 2 * found["chance: guessing among the answers"]
