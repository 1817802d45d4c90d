"""Needles that come with the package, and folders of anybody's: what is in them, and what is wrong with bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_recipes.synth.shapes_phrasings import PHRASINGS
from data_recipes.synth.shapes_world import HELD_OUT
from eval.needles import NeedleSet, rotations
from eval.niah_sets import SET_FILE, beeps, by_name, digits, needles_of, photographs, sentences, shapes
from vlm.errors import ConfigError, DataError

V_NIAH = "What is on the note?\nA. a town\nB. a school\nC. a name\nD. a tree\nAnswer with the option's letter."


def folder(path: Path, content: Any, name: str = SET_FILE) -> Path:
    for file, grey in (("a.png", 50), ("b.jpg", 200)):
        Image.fromarray(np.full((20, 30, 3), grey, np.uint8)).save(path / file)
    (path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def entry(**changes: Any) -> dict[str, Any]:
    return {"image": "a.png", "question": "Which colour?", "answer": "grey", **changes}


@pytest.mark.parametrize("make", [digits, shapes])
def test_drawn_needles_differ_from_one_another_and_from_their_look_alikes(make: Any) -> None:
    needles = make(48).needles
    assert len({n.answer for n in needles}) == len(needles) == 10
    pictures = [n.image for n in needles] + [n.lookalike for n in needles]
    assert len({p.tobytes() for p in pictures}) == 20
    assert {p.shape for p in pictures} == {(48, 48, 3)}
    assert [n.image.tobytes() for n in make(48).needles] == [n.image.tobytes() for n in needles]
    assert make(48, 1).needles[0].image.tobytes() != needles[0].image.tobytes()


def test_drawn_needles_are_asked_about_in_words_that_nano_has_learnt() -> None:
    one, two = digits(32), shapes(32)
    assert one.needles[0].question in PHRASINGS["digit"][0]
    assert one.needles[0].presence in PHRASINGS["digit_presence"][0]
    assert two.several in PHRASINGS["list"][0]
    assert two.order in PHRASINGS["order"][0]
    assert two.count in PHRASINGS["count"][0]
    assert not {(n.answer.split()[2], n.answer.split()[1]) for n in two.needles} & HELD_OUT


def test_photographs_have_names_of_their_own() -> None:
    try:
        chosen = photographs(96)
    except DataError as error:
        pytest.skip(str(error))
    names = [name for n in chosen.needles for name in n.names]
    assert len(set(names)) == len(names)
    assert all(n.when.startswith("When does the ") and n.when.endswith(" appear?") for n in chosen.needles)
    assert all(n.presence.startswith("Is there ") and n.image.shape == (96, 96, 3) for n in chosen.needles)
    shown = {n.image.tobytes() for n in chosen.needles}
    assert not shown & {n.lookalike.tobytes() for n in chosen.needles if n.lookalike is not None}
    assert chosen.forced("a baboon") == "A baboon."


def test_beeps_are_tones_of_the_shapes_world() -> None:
    needles = beeps(8000)
    assert all(0.3 <= n.seconds <= 1.5 for n in needles)
    for n in needles:
        spectrum = np.abs(np.fft.rfft(n.samples))
        assert 390 < np.argmax(spectrum) * 8000 / len(n.samples) < 1610
        assert 0.4 < np.abs(n.samples).max() <= 0.5


def test_read_sentences_have_words() -> None:
    try:
        spoken = sentences(16_000)
    except DataError as error:
        pytest.skip(str(error))
    assert all(n.text and 1 < n.seconds < 30 for n in spoken)


def test_a_folder_of_needles(tmp_path: Path) -> None:
    full = entry(also=["gray"], options=["grey", "red"], presence="Is there a card?", lookalike="b.jpg")
    found = needles_of(folder(tmp_path, {"needles": [entry(), full], "questions": {"order": "Which order?"}}))
    assert isinstance(found, NeedleSet)
    assert (found.name, found.order, found.count) == (tmp_path.name, "Which order?", "")
    plain, rich = found.needles
    assert (plain.names, plain.options, plain.lookalike) == (("grey",), None, None)
    assert plain.image.shape == (20, 30, 3)
    assert (rich.names, rich.options, rich.presence) == (("grey", "gray"), ("grey", "red"), "Is there a card?")
    assert rich.lookalike is not None
    assert rich.lookalike.mean() > 150
    assert by_name(str(tmp_path), size=32, seed=0).needles[1].answer == "grey"


def test_the_layout_of_v_niah_and_letters_in_the_question(tmp_path: Path) -> None:
    rows = [
        {"file_name": "a.png", "question": V_NIAH, "answer": "B"},
        {"file_name": "b.jpg", "question": "How many mg?", "answer": "200"},
    ]
    lines = "\n".join(json.dumps(row) for row in rows) + "\n"
    note, tablets = needles_of(folder(tmp_path, lines, "metadata.jsonl")).needles
    assert note.question == "What is on the note?"
    assert note.options == ("a town", "a school", "a name", "a tree")
    assert note.answer == "a school"
    assert {letter for _, letter in rotations(note)} == set("ABCD")
    assert (tablets.question, tablets.answer, tablets.options) == ("How many mg?", "200", None)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "not JSON"),
        ("[]", "list 'needles'"),
        ({"needles": []}, "at least one needle"),
        ({"needles": ["a.png"]}, "needle 1 .* must be an object"),
        ({"needles": [entry(), entry(answer="")]}, "needle 2 .*'answer'"),
        ({"needles": [{"image": "a.png", "question": "?"}]}, "'answer'"),
        ({"needles": [entry(image="c.png")]}, "'c.png' cannot be read"),
        ({"needles": [entry(image=SET_FILE)]}, "cannot be read"),
        ({"needles": [entry(image="../a.png")]}, "outside the folder"),
        ({"needles": [entry(lookalike="no.png")]}, "'no.png'"),
        ({"needles": [entry(options=["red", "blue"])]}, "needle 1 .*contain 'grey'"),
        ({"needles": [entry(options="grey")]}, "'options' must be a list"),
        ({"needles": [entry(also=[1])]}, "'also' must be a list"),
        ({"needles": [entry()], "questions": {"when": "When?"}}, "several, order, count"),
    ],
)
def test_bad_folders_say_what_is_wrong(tmp_path: Path, content: Any, match: str) -> None:
    with pytest.raises(DataError, match=match):
        needles_of(folder(tmp_path, content))


def test_no_folder_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needles='nowhere' is not a folder"):
        needles_of(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"neither needles\.json nor"):
        needles_of(tmp_path)
