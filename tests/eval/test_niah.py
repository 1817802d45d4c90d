"""Needle in a haystack: where needles land, how answers are judged, oracle 100 %, guessing at chance, resume."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eval.assistant import AssistantModel
from eval.haystacks import FileHaystack, ShapesHaystack, digit_needles
from eval.needles import Needle, guess_chance, insert_needle, is_right, rotations
from eval.niah import NO_NEEDLE, Cell, evaluate, run, search
from eval.report import read_results
from tests.tiny import tiny_assistant
from vlm.chat import Assistant
from vlm.errors import ConfigError, DataError
from vlm.media import Video, VideoInfo, load_video

DEPTHS = (0.0, 0.5, 1.0)
SIZE = 32
DIGITS = digit_needles(size=SIZE)
CHOICES = [replace(n, question="Which digit?", options=("0", "1", "2", "3")) for n in DIGITS[:4]]


@dataclass(frozen=True)
class Noise:
    """A haystack of dark noise, one frame a second."""

    name: str = "noise"

    def __call__(self, num_frames: int) -> Video:
        frames = np.random.default_rng(num_frames).integers(0, 40, (num_frames, SIZE, SIZE, 3), dtype=np.uint8)
        info = VideoInfo("noise", SIZE, SIZE, float(num_frames), 0.0, 1.0, num_frames, "none", 0, False, "drawn")
        times = np.arange(num_frames) + 0.5
        return Video(frames, times, float(num_frames), "noise", None, info, end=float(num_frames))


@dataclass
class Oracle:
    """Finds the needle by its pixels and reads the question; without a needle it says it does not know."""

    needles: list[Needle]
    asked: list[int] = field(default_factory=list)

    def answer(self, video: Video, question: str) -> str:
        self.asked.append(len(video.frames))
        found = [n.answer for n in self.needles for f in video.frames if np.array_equal(f, n.image)]
        if not found:
            return "I do not know."
        letters = [line[0] for line in question.splitlines() if line[1:] == f". {found[0]}"]
        return f"The answer is {letters[0] if letters else found[0]}."

    def forced_match(self, video: Video, question: str, answer: str) -> bool:
        return is_right(self.answer(video, question), answer)

    def count_tokens(self, video: Video, question: str) -> int:
        return 4 * len(video.frames) + len(question)


@dataclass
class Guesser(Oracle):
    """Guesses among the answers, or always says the same thing."""

    says: str | None = None
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def answer(self, video: Video, question: str) -> str:
        choices = "ABCD" if "A." in question else [n.answer for n in self.needles]
        return self.says or str(self.rng.choice(list(choices)))


def cells(model: Oracle, needles: list[Needle], lengths: tuple[int, ...] = (2, 5), mode: str = "insert") -> list[Cell]:
    return list(search(model, Noise(), needles, lengths=lengths, depths=DEPTHS, mode=mode))


def accuracy(measured: list[Cell], score: str = "free") -> float:
    inside = [c for c in measured if c.depth != NO_NEEDLE]
    return sum(getattr(c, score) for c in inside) / sum(c.trials for c in inside)


@pytest.mark.parametrize(("depth", "index"), [(0.0, 0), (0.2, 2), (0.25, 2), (0.5, 5), (0.999, 9), (1.0, 10)])
def test_inserting_adds_a_frame_at_the_depth(depth: float, index: int) -> None:
    hay, image = Noise()(10), DIGITS[0].image
    video, place = insert_needle(hay, image, depth)
    assert place == index
    assert np.array_equal(video.frames[index], image)
    assert np.array_equal(np.delete(video.frames, index, axis=0), hay.frames)
    assert video.timestamps.tolist() == [i + 0.5 for i in range(11)]
    assert (video.duration, video.end) == (11.0, 11.0)


@pytest.mark.parametrize(("depth", "index"), [(0.0, 0), (0.5, 4), (1.0, 9)])
def test_replacing_keeps_length_and_times(depth: float, index: int) -> None:
    hay, image = Noise()(10), DIGITS[0].image
    video, place = insert_needle(hay, image, depth, mode="replace")
    assert place == index
    assert np.array_equal(video.frames[index], image)
    assert np.array_equal(np.delete(video.frames, index, axis=0), np.delete(hay.frames, index, axis=0))
    assert np.array_equal(video.timestamps, hay.timestamps)
    assert video.duration == hay.duration


def test_needles_take_the_size_of_the_frames() -> None:
    video, _ = insert_needle(Noise()(3), np.full((90, 70, 3), 200, np.uint8), 0.0)
    assert video.frames.shape == (4, SIZE, SIZE, 3)
    assert (video.frames[0] == 200).all()


def test_wrong_placements_are_refused() -> None:
    with pytest.raises(ConfigError, match="insert, replace"):
        insert_needle(Noise()(3), DIGITS[0].image, 0.0, mode="glue")
    with pytest.raises(ConfigError, match="depth 2"):
        insert_needle(Noise()(3), DIGITS[0].image, 2.0)
    with pytest.raises(ConfigError, match="contain '7'"):
        replace(DIGITS[7], options=("1", "2"))


def test_the_right_option_stands_behind_every_letter_once() -> None:
    asked = list(rotations(CHOICES[2]))
    assert [letter for _, letter in asked] == ["A", "B", "C", "D"]
    for text, letter in asked:
        assert f"{letter}. 2" in text.splitlines()
        assert sorted(line[3:] for line in text.splitlines()[1:5]) == ["0", "1", "2", "3"]
    assert list(rotations(DIGITS[3])) == [("What digit is shown?", "3")]


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("7", "7", True),
        ("It is 7.", "7", True),
        ("77", "7", False),
        ("7 or 8", "7", False),
        ("the Yellow one", "yellow", True),
        ("", "7", False),
        ("B", "B", True),
        ("(b)", "B", True),
        ("B. yellow", "B", True),
        ("The answer is B.", "B", True),
        ("**B**", "B", True),
        ("B - cat", "B", True),
        ("The answer is B because it is a cat.", "B", True),
        ("The answer is a cat", "A", False),
        ("A's", "A", False),
        ("Answer: C", "B", False),
        ("A dog, so B", "A", False),
        ("Bad", "B", False),
    ],
)
def test_judging_free_words(reply: str, answer: str, right: bool) -> None:
    assert is_right(reply, answer, [str(d) for d in range(10)]) is right


@pytest.mark.parametrize("mode", ["insert", "replace"])
@pytest.mark.parametrize("needles", [DIGITS[:3], CHOICES], ids=["open", "choice"])
def test_an_oracle_scores_100_percent(needles: list[Needle], mode: str) -> None:
    measured = cells(Oracle(needles), needles, mode=mode)
    assert accuracy(measured) == accuracy(measured, "forced") == 1.0
    assert all(c.free == c.forced == 0 for c in measured if c.depth == NO_NEEDLE)
    frames = 5 + (mode == "insert")
    assert max(c.tokens for c in measured) >= 4 * frames


@pytest.mark.parametrize(("needles", "chance"), [(DIGITS, 0.1), (CHOICES, 0.25)], ids=["open", "choice"])
def test_guessing_scores_chance(needles: list[Needle], chance: float) -> None:
    assert guess_chance(needles) == pytest.approx(chance)
    measured = cells(Guesser(needles), needles, lengths=tuple(range(2, 22)))
    trials = sum(c.trials for c in measured if c.depth != NO_NEEDLE)
    assert accuracy(measured) == pytest.approx(chance, abs=3 * (chance * (1 - chance) / trials) ** 0.5)


def test_a_taste_for_one_letter_scores_chance_exactly() -> None:
    measured = cells(Guesser(CHOICES, says="C"), CHOICES)
    assert {c.free / c.trials for c in measured} == {0.25}


def test_results_hold_every_cell_and_both_scores(tmp_path: Path) -> None:
    needles = DIGITS[:3]
    path = evaluate(Oracle(needles), Noise(), needles, name="oracle", lengths=(2, 5), depths=DEPTHS, out=tmp_path)
    content = read_results(path)
    values = {r["name"]: r["value"] for r in content["rows"]}
    assert values["free: all cells"] == values["forced: all cells"] == 100
    assert values["free: no needle"] == 0
    assert values["free: depth 1.00, the needle is the last frame"] == 100
    assert values["chance: guessing among the answers"] == pytest.approx(100 / 3)
    one = next(r for r in content["rows"] if r["name"] == "free: 5 frames, depth 0.50")
    assert one["setting"]["trials"] == one["setting"]["right"] == 3
    assert one["setting"]["tokens"] == 4 * 6 + len("What digit is shown?")
    assert (one["setting"]["low"], one["setting"]["high"]) == (43.8, 100.0)
    assert content["setting"]["complete"] is True
    assert np.asarray(Image.open(tmp_path / "niah.png")).size > 0


def test_an_interrupted_run_is_continued(tmp_path: Path) -> None:
    needles = DIGITS[:2]

    class Tired(Oracle):
        def forced_match(self, video: Video, question: str, answer: str) -> bool:
            if len(self.asked) > 12:
                raise KeyboardInterrupt
            return super().forced_match(video, question, answer)

    def measure(model: Oracle, name: str = "oracle", fresh: bool = False) -> dict[str, float]:
        path = evaluate(model, Noise(), needles, name=name, lengths=(2, 5), depths=DEPTHS, out=tmp_path, fresh=fresh)
        return {r["name"]: r["value"] for r in read_results(path)["rows"]}

    with pytest.raises(KeyboardInterrupt):
        measure(Tired(needles))
    half = read_results(tmp_path / "niah.json")
    assert half["setting"]["complete"] is False
    measured = {r["setting"]["frames"] for r in half["rows"] if "depth" in r["setting"]}
    assert measured == {2}
    second = Oracle(needles)
    values = measure(second)
    assert 0 < len(second.asked) < 2 * 2 * 8
    assert values["free: all cells"] == 100
    whole = Oracle(needles)
    assert measure(whole, fresh=True) == values
    assert len(whole.asked) == 2 * 2 * 8
    again = Oracle(needles)
    measure(again)
    assert again.asked == []
    other = Oracle(needles)
    measure(other, name="another model")
    assert len(other.asked) == 2 * 2 * 8


def test_a_haystack_that_is_too_short_is_named(clip: Path) -> None:
    hay = FileHaystack(clip, SIZE)
    assert len(hay(8).frames) == 8
    assert hay.name != FileHaystack(clip, 2 * SIZE).name

    @dataclass(frozen=True)
    class Short(Noise):
        def __call__(self, num_frames: int) -> Video:
            return super().__call__(min(num_frames, 3))

    with pytest.raises(DataError, match="'noise' gave 3 frames instead of 5"):
        list(search(Oracle(DIGITS), Short(), DIGITS[:1], lengths=(5,), depths=(0.0,)))
    with pytest.raises(DataError, match="no needles"):
        evaluate(Oracle([]), Noise(), [], name="x", lengths=(5,))


def test_the_generated_haystack_has_no_digits_and_repeats() -> None:
    hay = ShapesHaystack(SIZE, seed=1)
    one, two = hay(12), hay(12)
    assert np.array_equal(one.frames, two.frames)
    assert one.frames.shape == (12, SIZE, SIZE, 3)
    assert one.duration == pytest.approx(12.0, abs=0.2)
    assert not np.array_equal(one.frames, ShapesHaystack(SIZE, seed=2)(12).frames)


@pytest.fixture(scope="module")
def tiny() -> Assistant:
    return tiny_assistant()


def test_a_model_of_this_package_answers_as_in_chat(tiny: Assistant, clip: Path) -> None:
    model = AssistantModel(tiny, max_new_tokens=8)
    video = load_video(clip, num_frames=5, size=32)
    reply = tiny.chat("What is shown?", video=video, max_new_tokens=8)
    assert model.answer(video, "What is shown?") == reply.raw
    assert model.count_tokens(video, "What is shown?") == reply.usage.prompt_tokens


def test_a_model_that_learnt_one_answer_scores_only_with_it() -> None:
    assistant, video = tiny_assistant(3), Noise()(4)
    part: dict[str, Any] = {"type": "video", "video": video}
    user: dict[str, Any] = {"role": "user", "content": [part, {"type": "text", "text": "What digit?"}]}
    example = assistant.processor.training_example([user, {"role": "assistant", "content": "42"}])
    batch = assistant.processor.collate([example])
    optimizer = torch.optim.Adam(assistant.model.language_model.parameters(), lr=1e-2)
    for _ in range(25):
        optimizer.zero_grad()
        assistant.model(**batch).loss.backward()
        optimizer.step()
    model = AssistantModel(assistant)
    assert model.answer(video, "What digit?") == "42"
    assert model.forced_match(video, "What digit?", "42")
    assert not model.forced_match(video, "What digit?", "43")


def test_forced_scores_equal_a_plain_training_forward(tiny: Assistant) -> None:
    video = Noise()(4)
    part = {"type": "video", "video": video}
    user: dict[str, Any] = {"role": "user", "content": [part, {"type": "text", "text": "What digit?"}]}
    messages = [user, {"role": "assistant", "content": "seven"}]
    batch = tiny.processor.collate([tiny.processor.training_example(messages)])
    loss = tiny.model(**batch).loss.item()
    targets, logits = AssistantModel(tiny)._forced(video, "What digit?", "seven")
    places = (batch["labels"][0] != -100).nonzero().flatten()
    end = tiny.model(**batch, loss_only=False).logits[0, places[-1] - 1].log_softmax(-1)[batch["labels"][0, places[-1]]]
    total = logits.log_softmax(-1).gather(1, targets[:, None]).sum() + end
    assert -total.item() / len(places) == pytest.approx(loss, rel=1e-4)


def test_frames_are_encoded_once(tiny: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    encode = tiny.model.encode_frames

    def counted(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(tiny.model, "encode_frames", counted)
    model = AssistantModel(tiny)
    hay = Noise()(6)
    for depth in DEPTHS:
        model.count_tokens(insert_needle(hay, DIGITS[0].image, depth)[0], "?")
    assert sum(seen) == 7


def test_fingerprints_follow_the_weights() -> None:
    one, same, other = (AssistantModel(tiny_assistant(seed)).fingerprint() for seed in (0, 0, 1))
    assert one == same != other


@pytest.mark.parametrize("pooling", [{"mode": "segments"}, {"mode": "slowfast"}], ids=lambda p: p["mode"])
def test_other_poolings_run_too(pooling: dict[str, str]) -> None:
    model = AssistantModel(tiny_assistant(pooling=pooling), max_new_tokens=2)
    measured = list(search(model, Noise(), DIGITS[:1], lengths=(4,), depths=(0.5,)))
    assert all(c.trials == 1 and c.tokens > 20 for c in measured)


def test_the_verb_runs_on_a_saved_model(tiny: Assistant, tmp_path: Path) -> None:
    tiny.model.save_pretrained(tmp_path / "model")
    tiny.processor.save_pretrained(tmp_path / "model")
    run(model=str(tmp_path / "model"), limit=2, out=tmp_path, lengths="3,4", depths=2)
    content = json.loads((tmp_path / "niah.json").read_text())
    assert content["command"].startswith("vlm eval niah lengths=3,4 depths=2")
    assert str(tmp_path) not in json.dumps(content)
    assert (tmp_path / "niah.png").exists()
    with pytest.raises(ConfigError, match="lengths='x'"):
        run(model=str(tmp_path / "model"), lengths="x")


@pytest.mark.slow
def test_nano_finds_needles(nano: Assistant, tmp_path: Path) -> None:
    run(model="nano", out=tmp_path, lengths="8,64", depths=3)
    values = {r["name"]: r["value"] for r in read_results(tmp_path / "niah.json")["rows"]}
    assert values["free: all cells"] > 2 * values["chance: guessing among the answers"]
