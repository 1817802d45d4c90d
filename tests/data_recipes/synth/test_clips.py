"""Clips: what is drawn is what is described, and written files keep its times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_recipes.synth.backgrounds import KINDS, Background
from data_recipes.synth.clips import MOTIONS, PLACES, Clip, Item, Shot, Sound, render_shot
from data_recipes.synth.imagenet import class_item
from data_recipes.synth.pictures import by_id
from vlm.errors import ConfigError, DataError
from vlm.media import load_audio, load_video

APPLE, FLAG = "food/fruit/apple_red", "town/flags/greenflag"
WHITE = Background("plain", 14)


@pytest.fixture(autouse=True)
def _needs_stamps() -> None:
    try:
        by_id()
    except DataError as error:
        pytest.skip(str(error))


def _item(picture: str, place: str) -> Item:
    return Item(by_id()[picture].name, place, picture=picture)


def _ink(frame: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Share of changed pixels in the left, middle and right third."""
    changed = np.abs(frame.astype(int) - background).max(-1) > 24
    return np.array([part.mean() for part in np.array_split(changed, 3, axis=1)])


@pytest.mark.parametrize("kind", KINDS)
def test_backgrounds_are_reproducible_and_scale(kind: str) -> None:
    small, again = Background(kind, 3).render((24, 32)), Background(kind, 3).render((24, 32))
    np.testing.assert_array_equal(small, again)
    assert (Background(kind, 4).render((24, 32)) != small).any()
    large = Background(kind, 3).render((48, 64))
    assert np.abs(large.mean((0, 1)) - small.mean((0, 1))).max() < 8


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("motion", MOTIONS)
def test_single_pictures_are_where_they_are_said_to_be(place: str, motion: str) -> None:
    shot = Shot(0, 1, (_item(APPLE, place),), WHITE, motion)
    for progress in (0.0, 1.0):
        frame = render_shot(shot, progress, (96, 128), aspect=4 / 3)
        ink = _ink(frame, WHITE.render((96, 128)))
        assert ink.argmax() == PLACES.index(place)
        if place != "middle":
            assert ink[2 - PLACES.index(place)] == 0


def test_copies_stand_side_by_side() -> None:
    for places in (("left", "right"), PLACES):
        shot = Shot(0, 1, tuple(_item(FLAG, p) for p in places), WHITE)
        frame = render_shot(shot, 0.5, (96, 128), aspect=4 / 3)
        columns = (np.abs(frame.astype(int) - WHITE.render((96, 128))).max(-1) > 24).any(0)
        runs = np.count_nonzero(np.diff(np.concatenate([[0], columns.astype(int)])) == 1)
        assert runs == len(places)


def test_stretched_frame_equals_true_frame_resized() -> None:
    from PIL import Image

    shot = Shot(0, 1, (_item(APPLE, "left"),), WHITE)
    true = render_shot(shot, 0.0, (240, 426), aspect=426 / 240)
    square = render_shot(shot, 0.0, (240, 240), aspect=426 / 240)
    resized = np.asarray(Image.fromarray(true).resize((240, 240), Image.Resampling.BICUBIC))
    assert np.abs(resized.astype(int) - square).mean() < 2.0


def test_motion_moves() -> None:
    still = Shot(0, 1, (_item(APPLE, "middle"),), WHITE, "still")
    zoom = Shot(0, 1, (_item(APPLE, "middle"),), WHITE, "zoom in")
    size = (96, 128)
    np.testing.assert_array_equal(render_shot(still, 0, size, aspect=4 / 3), render_shot(still, 1, size, aspect=4 / 3))
    growth = [_ink(render_shot(zoom, p, size, aspect=4 / 3), WHITE.render(size)).sum() for p in (0, 0.5, 1)]
    assert growth[0] < growth[1] < growth[2]


def test_things_without_a_picture_cannot_be_drawn() -> None:
    with pytest.raises(ConfigError, match="features only"):
        render_shot(Shot(0, 1, (class_item(0, "middle"),), WHITE), 0, (32, 32), aspect=1.0)


def test_written_clip_keeps_cuts_and_sound(tmp_path: Path) -> None:
    duck = by_id()["animals/birds/duck"]
    assert duck.spoken is not None
    sound = Sound(duck.spoken, 1.5, duck.caption, load_audio(duck.spoken, rate=16_000).duration)
    shots = (
        Shot(0.0, 1.2, (_item(APPLE, "middle"),), Background("plain", 1)),
        Shot(1.2, 3.0, (_item(FLAG, "middle"),), Background("texture", 2), "pan left", sound),
    )
    clip = Clip(shots, aspect=4 / 3)
    path = clip.write(tmp_path / "clip.mp4", 10.0, height=96)
    video = load_video(path, num_frames=30)
    assert video.duration == pytest.approx(clip.duration, abs=0.05)
    cuts = np.abs(np.diff(video.frames.astype(int), axis=0)).mean((1, 2, 3))
    assert video.timestamps[int(cuts.argmax()) + 1] == pytest.approx(1.2, abs=0.051)
    for i in (3, 20):
        expected = clip.render(float(video.timestamps[i]), (96, 128))
        assert np.abs(expected.astype(int) - video.frames[i]).mean() < 6
    heard = load_audio(path, rate=16_000).samples.mean(0)
    assert np.abs(heard[: int(1.4 * 16_000)]).max() < 0.01 < np.abs(heard[int(1.5 * 16_000) :]).max()
