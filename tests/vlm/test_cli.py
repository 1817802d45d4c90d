"""The command line: help for every verb, errors in one line, arguments from signatures, the picture of a reply."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import random_frames, tiny_assistant
from vlm import __version__
from vlm.arguments import build_parser
from vlm.cli import VERBS, _Growing, main
from vlm.errors import ConfigError
from vlm.report import clock, draw_strip, environment, model_facts
from vlm.time.span import Span


def test_overview_and_help_of_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    overview = capsys.readouterr().out
    for verb, function in VERBS.items():
        assert f"  {verb} " in overview
        parser, _ = build_parser(function, prog=verb)
        unexplained = [a.dest for a in parser._actions if not a.help]
        assert not unexplained, f"vlm {verb}: {unexplained} have no help text"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dance"], "no verb 'dance'"),
        (["chat", "x.mp4", "hi", "--model", "/no/such"], "cannot load"),
        (["fetch", "big"], "'big'"),
    ],
)
def test_mistakes_end_in_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("vlm: ") and message in error
    assert "Traceback" not in error


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "vlm", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(__version__)


def test_chat_answers_as_json_and_draws_the_strip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vlm.media import write_video

    tiny = tiny_assistant()
    tiny.model.save_pretrained(tmp_path / "model")
    tiny.processor.save_pretrained(tmp_path / "model")
    clip = write_video(tmp_path / "clip one.mp4", random_frames(20, size=64), fps=10)
    arguments = [
        str(clip),
        "What?",
        "--model",
        str(tmp_path / "model"),
        "--num-frames",
        "5",
        "--max-new-tokens",
        "4",
        "--json",
    ]
    assert main(["chat", *arguments]) == 0
    reply = json.loads(capsys.readouterr().out)
    assert reply["usage"]["frames"] == 5 and reply["question"] == "What?"
    picture = tmp_path / "strips" / "out.png"
    assert main(["chat", *arguments[:-1], "--picture", str(picture)]) == 0
    text = capsys.readouterr().out
    assert "question What?" in text and "5 frames" in text
    assert picture.stat().st_size > 1000
    assert main(["chat", *arguments, "--picture", str(tmp_path / "strip")]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["question"] == "What?" and "picture  " in captured.err
    assert (tmp_path / "strip").read_bytes().startswith(b"\x89PNG")
    assert main(["chat", *arguments, "--picture", str(tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert main(["chat", str(tmp_path / "none.mp4"), "What?", "--model", str(tmp_path / "model")]) == 2
    assert "none.mp4" in capsys.readouterr().err


def test_strip_marks_the_span() -> None:
    chat = tiny_assistant().conversation()
    chat.ask("a?", video=random_frames(6), num_frames=6, max_new_tokens=1)
    assert chat.video is not None
    plain = draw_strip(chat.video, [])
    marked = draw_strip(chat.video, [Span(0.0, chat.video.duration / 2)])
    assert plain.shape == marked.shape
    red = (
        np.all(np.abs(marked.astype(int) - [214, 39, 40]) < 3, axis=2).sum(),
        np.all(plain == [214, 39, 40], axis=2).sum(),
    )
    assert red[0] > 1000 and red[1] == 0


def test_strip_shows_frames_in_the_shape_of_the_clip() -> None:
    chat = tiny_assistant().conversation()
    chat.ask("a?", video=np.zeros((4, 40, 80, 3), np.uint8), num_frames=4, max_new_tokens=1)
    assert chat.video is not None
    dark = np.all(draw_strip(chat.video, []) == 0, axis=2)
    rows, columns = np.flatnonzero(dark[:, 8:168].all(1)), np.flatnonzero(dark[40])
    assert len(rows) == 80 and len(columns) == 4 * 160


def test_facts_count_what_is_there() -> None:
    tiny = tiny_assistant()
    facts = model_facts(tiny, frames=8)
    assert facts["parameters"] == sum(p.numel() for p in tiny.model.parameters())
    prompt = tiny.processor.prompt(
        [{"role": "user", "content": [{"type": "video", "video": random_frames(8), "num_frames": 8}]}]
    )
    assert facts["tokens for 8 frames"] == len(prompt.media[0].ids)
    assert environment()["torch"]


def test_facts_for_any_number_of_frames() -> None:
    tiny = tiny_assistant(pooling={"mode": "segments"}, time={"codec": "relative", "interleave": False})
    assert [model_facts(tiny, frames=n)[f"tokens for {n} frames"] for n in (1, 8, 60)] == [4, 32, 32]
    with pytest.raises(ConfigError, match="frames=0"):
        model_facts(tiny, frames=0)


def test_facts_say_how_precise_times_can_be() -> None:
    facts = model_facts(tiny_assistant(time={"codec": "relative", "num_tokens": 100}), seconds=120.0, event=2.0)
    assert facts["best IoU for an event of 2 s"] == pytest.approx(0.73, abs=0.015)
    assert facts["seconds between two times in 120 s"] == pytest.approx(1.212)


def test_clock() -> None:
    assert (clock(3.04), clock(75.25)) == ("3.0 s", "1:15.2")
    assert (clock(59.96), clock(119.97)) == ("1:00.0", "2:00.0")


@pytest.mark.parametrize(
    ("texts", "printed"),
    [
        (["A", "A b", "A b c"], "A b c\n"),
        (["A caf\ufffd", "A café"], "A caf\ufffd\nA café\n"),
        (["A", "A b"], "A b\n"),
    ],
)
def test_a_growing_text_ends_complete(texts: list[str], printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = _Growing(enabled=True)
    for text in texts[:-1]:
        shown.update(text)
    shown.end(texts[-1])
    assert capsys.readouterr().out == printed


def test_train_passes_on_the_status_of_a_preempted_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.main", lambda *_: 75)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "tiny"])
    assert stopped.value.code == 75
