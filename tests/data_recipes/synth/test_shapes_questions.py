"""Answers of the shapes world against a scene written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from data_recipes.synth.shapes_eyes import FORMS, eyes, patch_owners
from data_recipes.synth.shapes_questions import Asker, article, plural
from data_recipes.synth.shapes_render import COLOURS, SHAPES, Background, draw
from data_recipes.synth.shapes_scene import Scene, Thing, Track
from data_recipes.synth.shapes_world import HELD_OUT
from vlm.errors import ConfigError
from vlm.time import Span

GREY = Background("gradient", (30, 30, 30), (40, 40, 40), 2.0, 0.0, 0)


def thing(
    shape: str, colour: str, start: float, end: float, x: float, y: float, turns: tuple[float, str] | None = None
) -> Thing:
    return Thing(shape, colour, Span(start, end), Track("still", ((start, x, y),)), 0.15, turns=turns)


@pytest.fixture
def scene() -> Scene:
    things = (
        thing("circle", "red", 3.0, 7.5, 0.25, 0.25),
        thing("square", "orange", 0.0, 10.0, 0.75, 0.25, turns=(5.0, "blue")),
        thing("7", "white", 2.0, 3.0, 0.25, 0.75),
    )
    return Scene(10.0, 10.0, 64, GREY, things)


def answers(scene: Scene, *, still: bool = False) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for seed in range(20):
        for turn in Asker(scene, np.random.default_rng(seed), split="train", still=still).every():
            found.setdefault(turn.kind, set()).add(turn.answer)
    return found


def test_answers_about_a_clip(scene: Scene) -> None:
    found = answers(scene)
    assert found["list"] == {"an orange square, a red circle, a blue square"}
    assert found["colours"] == {"square orange, circle red, square blue"}
    assert found["count"] == {"an orange square, a red circle: two"}
    assert {"a red circle: one", "none"} < found["count_shape"] and {"a blue square: one"} < found["count_colour"]
    assert found["colour"] == {"red"}
    assert found["when"] == {
        "from {t:3.00} to {t:7.50}",
        "from {t:0.00} to {t:5.00}",
        "from {t:5.00} to {t:10.00}",
    }
    assert found["end"] == {"at {t:7.50}"}
    assert found["turn_when"] == {"at {t:5.00}"} and found["turn_to"] == {"blue"}
    assert found["digit"] == {"7"} and found["digit_when"] == {"from {t:2.00} to {t:3.00}"}
    assert found["describe"] == {
        "an orange square from {t:0.00} to {t:5.00}, a red circle from {t:3.00} to {t:7.50}, "
        "a blue square from {t:5.00} to {t:10.00}"
    }
    assert found["presence"] == {"yes", "no"}
    assert "collide" not in found and "beep_when" not in found


def test_times_as_the_frames_show_them(scene: Scene) -> None:
    times = np.array([1.0, 3.0, 5.0, 7.0, 9.0])
    asker = Asker(scene, np.random.default_rng(0), split="train", still=False, times=times)
    spans = {a.noun: (a.span.start, a.span.end) for a in asker.seen}
    assert spans == {"red circle": (2.0, 8.0), "orange square": (0.0, 4.0), "blue square": (4.0, 10.0)}
    digit = next(t for t in asker.every() if t.kind == "digit_when")
    assert digit.spans == (Span(2.0, 3.0),)  # no frame shows it, so this is the truth
    told = {a.noun: scene.appearances()[i].span for i, a in enumerate(scene.appearances())}
    assert told["red circle"] == Span(3.0, 7.5)


def test_lists_do_not_depend_on_what_nobody_can_see() -> None:
    """What starts together is named in one order, whatever the scene's; between two frames nothing comes first."""
    things = (thing("star", "pink", 2.0, 9.0, 0.2, 0.2), thing("cross", "red", 2.4, 9.0, 0.5, 0.8))
    times = np.array([1.0, 3.0, 5.0, 7.0, 9.0])
    for order in (things, things[::-1]):
        scene = Scene(10.0, 10.0, 64, GREY, order)
        asker = Asker(scene, np.random.default_rng(0), split="train", still=False, times=times)
        assert [a.noun for a in asker.seen] == ["red cross", "pink star"]
        true_times = Asker(scene, np.random.default_rng(0), split="heldout", still=False)
        assert [a.noun for a in true_times.seen] == ["pink star", "red cross"]


def test_answers_about_a_picture() -> None:
    things = (thing("star", "pink", 0.0, 1.0, 0.2, 0.2), thing("star", "white", 0.0, 1.0, 0.5, 0.8))
    found = answers(Scene(1.0, 1.0, 64, GREY, things), still=True)
    assert found["caption"] == {"a pink star at the top left, a white star at the bottom"}
    assert found["where"] == {"at the top left", "at the bottom"}
    assert "a white star, a pink star: two" in found["count_shape"] and "none" in found["count_shape"]
    assert "when" not in found and "colour" not in found


def test_order_is_asked_only_when_starts_differ() -> None:
    same = (thing("star", "pink", 2.0, 9.0, 0.2, 0.2), thing("circle", "red", 2.0, 8.0, 0.8, 0.8))
    assert not {"first", "order", "before"} & set(answers(Scene(10.0, 10.0, 64, GREY, same)))
    apart = (thing("star", "pink", 2.0, 9.0, 0.2, 0.2), thing("circle", "red", 1.0, 8.0, 0.8, 0.8))
    found = answers(Scene(10.0, 10.0, 64, GREY, apart))
    assert found["first"] == {"a red circle"} and found["last"] == {"a pink star"}
    assert found["which_first"] == {"the red circle"} and found["before"] == {"yes", "no"}


def test_words() -> None:
    assert article("orange star") == "an orange star" and article("red star") == "a red star"
    assert plural("cross") == "crosses" and plural("circle") == "circles"


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_filled_centred_and_anti_aliased(shape: str) -> None:
    frame = np.zeros((64, 64, 3), np.uint8)
    draw(frame, shape, (255, 255, 255), 0.5, 0.5, 0.3, 0.0)
    mask = frame[..., 0] / 255.0
    assert mask[32, 32] == 1.0 and mask[2, 2] == 0.0
    assert ((mask > 0) & (mask < 1)).any()
    assert mask[:, :32].sum() == pytest.approx(mask[:, 32:].sum(), rel=0.03)
    assert 0.05 < mask.mean() < 0.3


def test_drawing_outside_the_frame_or_something_unknown() -> None:
    frame = np.zeros((32, 32, 3), np.uint8)
    draw(frame, "circle", (255, 0, 0), 3.0, 3.0, 0.1, 0.0)
    assert not frame.any()
    with pytest.raises(ConfigError, match="hexagon"):
        draw(frame, "hexagon", (255, 0, 0), 0.5, 0.5, 0.3, 0.0)


def test_patch_owners_tell_what_lies_there(scene: Scene) -> None:
    later = Scene(10.0, 10.0, 64, GREY, scene.things[1:2])
    owners = patch_owners(later, 64, 8).reshape(8, 8)
    assert owners[2, 6] == 1 and owners[7, 7] == 0 and owners[2, 2] == 0


def test_eyes_learn_forms_in_any_colour_but_a_hidden_one() -> None:
    data = eyes(400, 0)
    unnamed = 0
    for index in range(150):
        item = data[index]
        assert (
            item["pixel_values"].shape == (3, 64, 64)
            and -1 <= item["pixel_values"].min() <= item["pixel_values"].max() <= 1
        )
        for number in range(1, int(item["things"].max()) + 1):
            there = item["things"] == number
            if not there.any():
                continue
            form, colour = item["labels"][there], item["colours"][there]
            assert len(set(form.tolist())) == len(set(colour.tolist())) == 1 and form[0] > 0
            unnamed += int(colour[0] == -100)
            if colour[0] >= 0:
                assert (FORMS[int(form[0])], list(COLOURS)[int(colour[0])]) not in HELD_OUT
        assert (item["labels"][item["things"] == 0] == 0).all()
    assert unnamed > 100
