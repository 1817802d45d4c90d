"""``vlm eval grounding`` end to end on a tiny model, and its rows from answers whose scores are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from eval import run_task
from eval.captioning import Caption
from eval.grounding import Answered, answer, captions_of, judge_rows, rows_of
from eval.grounding_sets import WORLDS, Asked, annotated, world
from eval.spans import Question
from tests.tiny import tiny_assistant
from vlm.errors import CheckpointError, ConfigError, DataError
from vlm.media import load_video
from vlm.time import Span, make_codec

RELATIVE, SECONDS = make_codec("relative", num_tokens=101), make_codec("seconds")


def answered(raw: str, *truth: tuple[float, float], video: str = "v", kind: str = "when", answer: str = "") -> Answered:
    spans = tuple(Span(*t) for t in truth)
    return Answered(Asked({}, "When?", Question(video, spans, 100.0), answer, kind), raw)


def values(answers: list[Answered], **options: object) -> dict[str, float]:
    return {r["name"]: r["value"] for r in rows_of(answers, RELATIVE, **options)}  # type: ignore[arg-type]


def test_rows_of_known_answers() -> None:
    answers = [
        answered("<t10> <t20>", (10, 20), video="a"),
        answered("from <t10> to <t40>", (10, 20), video="a"),
        answered("I do not know", (0, 50), video="b", kind="end"),
    ]
    found = values(answers)
    assert found["mIoU"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert found["mIoU by video"] == pytest.approx(((1 + 1 / 3) / 2 + 0) / 2)
    assert (found["R@0.3"], found["R@0.5"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert found["LITA's protocol, mIoU"] == pytest.approx(((1 + 1 / 3) / 2 + 0.5) / 2), "the whole clip, by video"
    assert found["LITA's protocol, precision@0.5"] == pytest.approx((0.5 + 1.0) / 2)
    assert (
        found["answers without a time"] == found["LITA's protocol, answers without two times"] == pytest.approx(1 / 3)
    )
    assert found["mIoU, when"] == pytest.approx(2 / 3) and found["mIoU, end"] == 0.0
    assert found["chance: the whole clip, mIoU"] == pytest.approx((0.1 + 0.1 + 0.5) / 3)
    assert found["chance: the best span for all, mIoU"] >= found["chance: the whole clip, mIoU"]
    assert found["best that the time codec can say, mIoU"] == pytest.approx(1.0)
    assert found["bounds near a multiple of 5 s"] == 1.0


def test_several_spans_and_none() -> None:
    answers = [
        answered("<t0> <t10>, <t50> <t60>", (0, 10), (50, 60)),
        answered("<t0> <t10>", (0, 10), (50, 60)),
        answered("not present"),
        answered("<t0> <t10>"),
    ]
    found = values(answers)
    assert found["mIoU"] == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert found["absent events called absent"] == 0.5
    assert "LITA's protocol, mIoU" not in found, "it knows one span only"


def test_the_interval_draws_videos_not_questions() -> None:
    alike = [answered(f"<t{10 + (i % 2) * 40}> <t20>", (10, 20), video=f"v{i // 20}") for i in range(40)]
    (first,) = [r for r in rows_of(alike, RELATIVE) if r["name"] == "mIoU"]
    assert first["setting"]["low"] == first["setting"]["high"], "two videos that do not differ"


@pytest.mark.parametrize(
    ("raw", "captions"),
    [
        ("<t0> <t10> A dog runs. <t10> <t30> It rests.", [(0, 10, "A dog runs."), (10, 30, "It rests.")]),
        ("a dog from <t0> to <t10>, a cat from <t5> to <t9>", [(0, 10, "a dog"), (5, 9, "a cat")]),
        ("nothing at all", []),
        ("<t0> <t10>", []),
    ],
)
def test_captions_before_and_after_their_times(raw: str, captions: list[tuple[float, float, str]]) -> None:
    assert captions_of(raw, RELATIVE, 100.0) == [Caption(Span(a, b), text) for a, b, text in captions]


def test_dense_captions_are_scored_as_such() -> None:
    truth = "{t:0-10} A dog runs over the street. {t:10-30} It rests in the sun."
    right = RELATIVE.write(truth, 100.0)
    found = values([answered(right, (0, 10), (10, 30), answer=truth)], dense=True)
    assert found["dense captions, F1 of spans"] == 100.0 and found["dense captions, SODA_c"] > 90
    wrong = values([answered("<t80> <t90> Music.", (0, 10), (10, 30), answer=truth)], dense=True)
    assert wrong["dense captions, F1 of spans"] == wrong["dense captions, CIDEr-D"] == 0.0


def test_a_judge_sees_no_times() -> None:
    answers = [
        answered(
            "<t10> <t20>: a red circle comes last", (10, 20), answer="from {t:10} to {t:20}: a red circle comes last"
        )
    ]
    (score, failed, _) = judge_rows("words", answers, RELATIVE)
    assert score["value"] > 90 and failed["value"] == 0.0
    assert answers[0].words(RELATIVE) == "a red circle comes last"


@pytest.mark.parametrize("name", WORLDS)
def test_worlds_ask_about_real_files(tmp_path: Path, name: str) -> None:
    try:
        next(world(name, tmp_path, videos=1, seed=1, seconds=20, frames=32))
    except (DataError, CheckpointError) as error:
        pytest.skip(str(error))
    seen = set()
    for asked in world(name, tmp_path, videos=3, seed=1, seconds=20, frames=32):
        assert load_video(asked.part["video"], num_frames=2).duration == pytest.approx(asked.truth.duration, abs=0.1)
        assert asked.truth.truth and all(
            0 <= s.start < s.end <= asked.truth.duration + 0.001 for s in asked.truth.truth
        )
        seen.add(asked.truth.video)
    assert seen
    again = [a.question for a in world(name, tmp_path, videos=3, seed=1, seconds=20, frames=32)]
    assert again == [a.question for a in world(name, tmp_path, videos=3, seed=1, seconds=20, frames=32)]


def test_a_file_of_annotations(tmp_path: Path) -> None:
    clip = Path(__file__).parents[2] / "demo/examples/shapes.mp4"
    (tmp_path / "AO8RW.mp4").write_bytes(clip.read_bytes())
    (tmp_path / "sta.txt").write_text("AO8RW 0.0 6.9##a person smiles.\nAO8RW 1 2##a person sits.\n")
    asked = list(
        annotated(tmp_path / "sta.txt", format="charades_sta", task="localise", media=None, seed=0, limit=None)
    )
    assert [a.truth.truth for a in asked] == [(Span(0, 6.9),), (Span(1, 2),)]
    assert asked[0].truth.duration == pytest.approx(load_video(clip, num_frames=1).duration)


def test_a_folder_of_frames_is_asked_about(tmp_path: Path) -> None:
    (tmp_path / "v_a").mkdir()
    for i in range(6):
        Image.new("RGB", (32, 32), (40 * i, 0, 0)).save(tmp_path / "v_a" / f"{i:06d}.jpg")
    (tmp_path / "c.json").write_text(
        json.dumps({"v_a": {"duration": 60.0, "timestamps": [[30, 60]], "sentences": ["b"]}})
    )
    asked = annotated(tmp_path / "c.json", format="captions", task="localise", media=None, seed=0, limit=None)
    (one,) = answer(tiny_assistant(), asked, 6, max_new_tokens=2)
    assert one.asked.truth.truth == (Span(30, 60),) and one.raw


def test_the_command_writes_results_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = tiny_assistant()
    tiny.model.save_pretrained(tmp_path / "tiny")
    tiny.processor.save_pretrained(tmp_path / "tiny")
    run_task(
        "grounding",
        model=str(tmp_path / "tiny"),
        limit=2,
        out=tmp_path,
        options=["data=reasoning", "judge=words", "num_frames=8"],
    )
    content = json.loads((tmp_path / "grounding-reasoning.json").read_text())
    assert content["command"].startswith("vlm eval grounding data=reasoning judge=words num_frames=8 seed=0")
    assert {"mIoU", "LITA's protocol, mIoU", "relative score of explanations"} <= {r["name"] for r in content["rows"]}
    assert (tmp_path / "grounding-reasoning.png").stat().st_size > 1000
    assert "mIoU" in capsys.readouterr().out


def test_misuse_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="format="):
        run_task("grounding", model="nano", limit=1, out=tmp_path, options=["data=annot.json"])
    with pytest.raises(ConfigError, match="shapes, reasoning, joined"):
        next(world("lego", tmp_path, videos=1, seed=0, seconds=1, frames=1))
