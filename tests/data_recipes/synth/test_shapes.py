"""The shapes world as a dataset: deterministic, truly held out, exact in time, and the same through a real file."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_recipes.sample import rng_for
from data_recipes.synth.shapes import HELD_OUT, LEVELS, conversations, mixture, needle_frame, scene_for
from data_recipes.synth.shapes_phrasings import PHRASINGS
from data_recipes.synth.shapes_render import COLOURS, DIGITS
from data_recipes.synth.shapes_scene import Scene
from data_recipes.synth.shapes_world import beep_times, random_scene
from vlm.errors import ConfigError
from vlm.media import load_audio, load_video, probe

SMALL = replace(LEVELS["clips"], seconds=(2.0, 4.0), fps=(8, 12), frames=(8, 8))


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def test_an_item_is_a_function_of_seed_and_index_alone() -> None:
    one = conversations("train", seed=3, size=50, level="short")
    other = conversations("train", seed=3, size=20, level="short")
    _ = [other[i] for i in (7, 2)]
    first, second = one[5], other[5]
    assert first.messages[1:] == second.messages[1:]
    videos = [s.messages[0]["content"][0]["video"] for s in (first, second)]
    assert np.array_equal(videos[0].frames, videos[1].frames)
    assert conversations("train", seed=4, size=50, level="short")[5].meta["scene"] != first.meta["scene"]


@pytest.mark.parametrize("level", ["stills", "clips"])
def test_training_never_shows_or_asks_about_a_held_out_pair(level: str) -> None:
    kinds = tuple(kind for kind in PHRASINGS if kind != "repeat")
    data = conversations("train", seed=0, size=200, level=level, turns=40, kinds=kinds)
    hidden = [f"{colour} {shape}" for shape, colour in HELD_OUT]
    for index in range(30):
        scene = data.scene(index)
        assert not HELD_OUT & {(a.shape, a.colour) for a in scene.appearances()}
        text = " ".join(part["text"] for m in data[index].messages for part in m["content"] if part["type"] == "text")
        assert not [noun for noun in hidden if noun in text]


def test_any_pair_is_repeated_after_the_user() -> None:
    data = conversations("train", seed=0, size=200, level="stills", turns=40, kinds=("repeat",))
    turns = [turn for i in range(60) for turn in data[i].meta["turns"]]
    assert all(turn.question.endswith(turn.answer) for turn in turns)
    assert any(f"{colour} {shape}" in turn.answer for turn in turns for shape, colour in HELD_OUT)


def test_every_held_out_scene_shows_a_held_out_pair() -> None:
    data = conversations("heldout", seed=0, size=60, level="clips")
    assert all(HELD_OUT & {(a.shape, a.colour) for a in data.scene(i).appearances()} for i in range(60))


def test_held_out_phrasings_are_new_but_use_known_words() -> None:
    known = set().union(*(words(p) for train, _ in PHRASINGS.values() for p in train))
    for kind, (train, held_out) in PHRASINGS.items():
        assert len(train) >= 2 and held_out, kind
        assert not set(train) & set(held_out), kind
        for phrasing in held_out:
            assert words(phrasing) <= known, (kind, words(phrasing) - known)


def test_a_conversation_is_about_one_clip_and_alternates() -> None:
    sample = conversations("train", seed=0, size=10, level="clips", turns=8)[1]
    assert [m["role"] for m in sample.messages] == ["user", "assistant"] * (len(sample.messages) // 2)
    kinds = [part["type"] for m in sample.messages for part in m["content"]]
    assert kinds.count("video") == 1 and kinds[0] == "video"
    assert 4 <= len(sample.meta["turns"]) <= 8
    assert [m["content"][0]["text"] for m in sample.messages[1::2]] == [t.answer for t in sample.meta["turns"]]


def test_in_brief_clips_nothing_lasts_long() -> None:
    for i in range(60):
        scene = random_scene(rng_for(3, i), LEVELS["brief"], split="train", size=64, num_frames=32)
        assert all(thing.visible.length <= 0.3 * scene.duration + 1 / scene.fps for thing in scene.things)


@pytest.mark.parametrize("name", sorted(LEVELS))
def test_levels_keep_their_bounds(name: str) -> None:
    step, data = LEVELS[name], conversations("train", seed=1, size=40, level=name, image_size=64)
    for index in range(15):
        scene = data.scene(index)
        assert step.shapes[0] <= len(scene.shapes) <= step.shapes[1]
        if not step.still:
            assert step.seconds[0] - 0.1 <= scene.duration <= step.seconds[1] + 0.1
            assert step.fps[0] <= scene.fps <= step.fps[1]
        assert 64 <= scene.size <= 256
        assert step.beeps or not scene.beeps


def test_needles_are_seen_by_at_least_one_sampled_frame() -> None:
    data = conversations("train", seed=2, size=100, level="needle")
    seen = 0
    for index in range(40):
        sample = data[index]
        for thing in sample.meta["scene"].digits:
            times = sample.messages[0]["content"][0]["video"].timestamps
            shown = int(((times >= thing.visible.start) & (times < thing.visible.end)).sum())
            assert 1 <= shown <= 3
            seen += 1
    assert seen > 20


def test_a_written_file_shows_what_the_scene_says_when_it_says(tmp_path: Path) -> None:
    checked = 0
    for index in range(12):
        scene = scene_for("train", seed=5, index=index, level=replace(SMALL, whole=0.0, change=0.0, collide=0.0))
        path = scene.write(tmp_path / "clip.mp4", size=96)
        info = probe(path)
        assert info.codec == "h264" and info.duration == pytest.approx(scene.duration, abs=0.5 / scene.fps)
        count = round(scene.duration * scene.fps)
        video = load_video(path, num_frames=count)
        assert np.allclose(video.timestamps, np.arange(count) / scene.fps, atol=1e-3)
        difference = np.abs(video.frames.astype(int) - scene.frames(video.timestamps, 96).astype(int)).mean()
        assert difference < 6.0
        checked += _check_spans(scene, video.frames, video.timestamps)
    assert checked >= 3


def _check_spans(scene: Scene, frames: np.ndarray, times: np.ndarray) -> int:
    """Where a thing is drawn alone its colour is there exactly from the start of its span to its end."""
    checked = 0
    for a in scene.appearances():
        if a.thing.track.motion != "still" or a.thing.turns or a.span.end - a.span.start > 0.9 * scene.duration:
            continue
        x, y = a.thing.track.at(a.span.start)
        row, column = int(y * 96), int(x * 96)
        distance = np.abs(frames[:, row, column].astype(int) - np.array(COLOURS[a.colour])).sum(-1)
        visible = (times >= a.span.start - 1e-6) & (times < a.span.end - 1e-6)
        assert (distance[visible] < 90).all() and (distance[~visible] > 90).all()
        checked += 1
    return checked


def test_drawn_and_decoded_videos_agree() -> None:
    drawn = conversations("train", seed=6, size=4, level=SMALL, num_frames=8)[2]
    decoded = conversations("train", seed=6, size=4, level=SMALL, num_frames=8, via_file=1.0)[2]
    one, two = (s.messages[0]["content"][0]["video"] for s in (drawn, decoded))
    assert two.info.codec == "h264" and one.info.codec == "none"
    assert np.allclose(one.timestamps, two.timestamps, atol=1e-3)
    assert one.frames.shape == two.frames.shape == (8, 64, 64, 3)
    assert np.abs(one.frames.astype(int) - two.frames.astype(int)).mean() < 8.0


def test_clips_with_sound_bring_it_along_and_ask_about_it() -> None:
    data = conversations("train", seed=5, size=40, level="sound", kinds=("beep_count", "beep_when"))
    counts = set()
    for sample in (data[i] for i in range(20)):
        media = sample.messages[0]["content"][:-1]
        assert [part["type"] for part in media] == ["video", "audio"]
        loud = float(np.abs(media[1]["audio"].samples).max()) > 0.1
        assert loud == bool(sample.meta["scene"].beeps)
        counts |= {t.answer.rpartition(": ")[2] for t in sample.meta["turns"] if t.kind == "beep_count"}
    assert {"none", "one", "two", "three"} == counts


def test_some_beeps_begin_or_end_with_the_clip_and_none_touch() -> None:
    rng = np.random.default_rng(0)
    first, last, gaps = 0, 0, []
    for _ in range(500):
        times = list(beep_times(rng, 3, 12.0, most=0.6, margin=0.1))
        first += times[0][0] == 0.0
        last += abs(times[-1][1] - 12.0) < 1e-9
        gaps += [b[0] - a[1] for a, b in itertools.pairwise(times)]
        assert all(0.0 <= start < end <= 12.0 + 1e-9 for start, end in times)
    assert 25 < first < 100 and 25 < last < 100 and min(gaps) > 0.79  # a margin of 0.4 s on both sides


def test_beeps_are_heard_when_the_scene_says(tmp_path: Path) -> None:
    scene = scene_for("train", seed=7, index=0, level=replace(SMALL, beeps=1.0))
    audio = load_audio(scene.write(tmp_path / "clip.mp4"), rate=16_000)
    loud = np.abs(audio.samples[0])
    for beep in scene.beeps:
        first, last = int(beep.span.start * 16_000), int(beep.span.end * 16_000)
        assert loud[first:last].mean() > 0.1
    silent = np.ones(len(loud), bool)
    for beep in scene.beeps:
        silent[max(int((beep.span.start - 0.1) * 16_000), 0) : int((beep.span.end + 0.1) * 16_000)] = False
    assert loud[silent].mean() < 0.01


def test_needle_frames_differ_by_digit_and_seed() -> None:
    frames = [needle_frame(d, 64) for d in DIGITS]
    assert all(f.shape == (64, 64, 3) and f.dtype == np.uint8 and f.max() > 200 for f in frames)
    assert not np.array_equal(needle_frame("7", 64), needle_frame("7", 64, seed=1))
    with pytest.raises(ConfigError, match="'x'"):
        needle_frame("x")


def test_a_mixture_keeps_its_shares_and_is_deterministic() -> None:
    data = mixture("train", seed=0, size=200, levels={"one": 3.0, "glimpse": 1.0})
    levels = [data[i].meta["level"] for i in range(80)]
    assert 0.6 < levels.count("one") / 80 < 0.9
    assert [data[i].meta["level"] for i in (5, 3)] == [levels[5], levels[3]]
    with pytest.raises(ConfigError, match="not all 0"):
        mixture("train", seed=0, size=1, levels={"one": 0.0})


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="'test'"):
        conversations("test", seed=0, size=1)
    with pytest.raises(ConfigError, match=r"kinds=\['size'\]"):
        conversations("train", seed=0, size=1, kinds=("size",))
    with pytest.raises(ConfigError, match="seed=-1"):
        conversations("train", seed=-1, size=1)[0]
    with pytest.raises(ConfigError, match="'hard'"):
        conversations("train", seed=0, size=1, level="hard")


def test_questions_that_need_reasoning_are_asked_when_wanted() -> None:
    data = conversations("train", seed=3, size=30, level="clips", kinds=("when", "reason_last", "reason_longest"))
    kinds = {turn.kind for i in range(30) for turn in data[i].meta["turns"]}
    assert kinds == {"when", "reason_last", "reason_longest"}
    assert all(len(data[i].meta["turns"]) <= 8 for i in range(30))
    lonely = conversations("train", seed=3, size=60, level="clips", kinds=("reason_changed",))
    assert {t.kind for i in range(60) for t in lonely[i].meta["turns"]} == {"reason_changed", "when"}
    assert all(lonely[i].messages for i in range(60))
    with pytest.raises(ConfigError, match="reason_vision"):
        conversations("train", seed=3, size=1, kinds=("reason_vision",))
