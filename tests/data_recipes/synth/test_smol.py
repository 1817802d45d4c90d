"""Conversations about clips of pictures: questions answer truly, data are reproducible, media fit the words."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_recipes.synth.backgrounds import Background
from data_recipes.synth.clips import Clip, Item, Shot, Sound
from data_recipes.synth.features import FeatureBank, classifier
from data_recipes.synth.imagenet import VAGUE
from data_recipes.synth.pictures import Name
from data_recipes.synth.smol import SmolDataset, conversations
from data_recipes.synth.smol_names import related, unrelated_names, vocabulary
from data_recipes.synth.smol_questions import KINDS, PHRASINGS, Asker
from tests.data_recipes.synth.bank import small_bank
from vlm.errors import ConfigError
from vlm.media import Video, load_video

FROG, CAT, MOON = Name("frog", "a"), Name("cat", "a"), Name("moon", "the")
PLAIN = Background("plain", 0)
CLIP = Clip(
    (
        Shot(0.0, 4.0, (Item(FROG, "left", "green"),), PLAIN),
        Shot(4.0, 9.0, (Item(CAT, "left"), Item(CAT, "right")), PLAIN, sound=Sound(Path(), 5.0, "Two cats.", 1.0)),
        Shot(9.0, 10.0, (Item(MOON, "middle", "white"), Item(Name("grapes", ""), "right")), PLAIN),
    )
)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> FeatureBank:
    return small_bank(tmp_path_factory.mktemp("bank"))


def _dataset(bank: FeatureBank, **options: object) -> SmolDataset:
    return SmolDataset("class", 200, bank=bank, shots=(1, 4), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        ("list", {"A frog, two cats, the moon and grapes."}),
        (
            "describe",
            {
                "From {t:0.00} to {t:4.00}: a frog. From {t:4.00} to {t:9.00}: two cats. "
                "From {t:9.00} to {t:10.00}: the moon and grapes."
            },
        ),
        ("presence", {"Yes.", "No."}),
        ("colour", {"Green.", "White."}),
        ("where", {"On the left.", "In the middle.", "On the right."}),
        ("place", {"The moon.", "Grapes."}),
        ("count", {"One.", "Two."}),
        ("first", {"A frog."}),
        ("last", {"The moon and grapes."}),
        ("after", {"Two cats.", "The moon and grapes."}),
        ("order", {"The frog.", "The two cats."}),
        ("when", {"From {t:0.00} to {t:4.00}.", "From {t:4.00} to {t:9.00}.", "From {t:9.00} to {t:10.00}."}),
        ("at", {"A frog.", "Two cats.", "The moon and grapes."}),
        ("said", {"Two cats."}),
    ],
)
def test_every_kind_has_exactly_the_true_answers(kind: str, answers: set[str]) -> None:
    asker = Asker(CLIP, [Name("dog", "a")])
    turns = [asker.ask(kind, np.random.default_rng(i)) for i in range(80)]
    seen = {t.answer for t in turns if t is not None}
    assert seen == answers


def test_answers_fit_their_questions() -> None:
    asker = Asker(CLIP, [Name("dog", "a")])
    where = {"frog": "On the left.", "moon": "In the middle.", "grapes": "On the right."}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        for kind in ("where", "when", "presence", "count", "order"):
            turn = asker.ask(kind, rng)
            if turn is None:
                continue
            if kind == "where":
                assert turn.answer == where[next(n for n in where if n in turn.question)]
            elif kind == "presence":
                assert (turn.answer == "No.") == ("dog" in turn.question)
            elif kind == "count":
                assert turn.answer == ("Two." if "cats" in turn.question else "One.")
            elif kind == "when":
                start, end = turn.spans[0]
                assert turn.answer == f"From {{t:{start:.2f}}} to {{t:{end:.2f}}}."
                assert not re.search(r"(does|is) the (two|grapes)", turn.question)
            else:
                assert turn.truth in turn.question and turn.truth in turn.choices


def test_heldout_phrasings_are_never_trained() -> None:
    for train, heldout in PHRASINGS.values():
        assert train and heldout and not set(train) & set(heldout)
    texts: dict[bool, set[str]] = {seen: set() for seen in (False, True)}
    for seen in texts:
        asker = Asker(CLIP, [Name("dog", "a")], heldout=seen)
        texts[seen] = {t.question for i in range(40) for t in asker.turns(np.random.default_rng(i), count=6)}
    assert not texts[False] & texts[True]


def test_yes_and_no_are_balanced() -> None:
    """Over all questions, and after a question with a known answer."""
    counts: Counter[str] = Counter()
    pairs: Counter[bool] = Counter()
    for i in range(200):
        turns = Asker(CLIP, [Name(n, "a") for n in ("dog", "cow", "hen")]).turns(np.random.default_rng(i), count=6)
        answers = [t.truth for t in turns if t.kind == "presence"]
        counts.update(answers)
        pairs.update(a == b for a, b in itertools.pairwise(answers))
    assert 0.8 < counts["yes"] / counts["no"] < 1.25
    assert 0.7 < pairs[True] / pairs[False] < 1.4


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_name_alone_does_not_tell_yes_from_no(share: float) -> None:
    """ImageNet's names are as common among what is not there as among what is."""
    rng, pictures = np.random.default_rng(0), set(vocabulary("train"))
    names = [n for _ in range(40) for n in unrelated_names([FROG], rng, split="train", classes=share)]
    assert np.mean([n not in pictures for n in names]) == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize("split", ["train", "picture"])
def test_a_name_is_as_common_among_what_is_not_there_as_in_pictures(split: str) -> None:
    """Whether a name has one picture or many in its split, or none, must not tell yes from no."""
    rng, pictures = np.random.default_rng(0), Counter(vocabulary(split))
    names = [
        n for _ in range(80) for n in unrelated_names([Name("nothing like it", "")], rng, split=split, classes=0.0)
    ]
    assert set(names) <= set(pictures)
    many = sum(count for count in pictures.values() if count > 1) / pictures.total()
    assert np.mean([pictures[n] > 1 for n in names]) == pytest.approx(many, abs=0.06)


def test_silent_clip_is_not_asked_what_is_said() -> None:
    silent = Clip(CLIP.shots[:1])
    assert Asker(silent, []).ask("said", np.random.default_rng(0)) is None
    assert Asker(silent, []).ask("order", np.random.default_rng(0)) is None


def test_samples_are_reproducible_and_have_the_documented_form(bank: FeatureBank) -> None:
    data, again = _dataset(bank), _dataset(bank)
    for i in (0, 7, 23):
        sample, other = data[i], again[i]
        assert sample.id == other.id == f"smol-class-0-{i}"
        first, twin = sample.messages[0]["content"], other.messages[0]["content"]
        np.testing.assert_array_equal(first[0]["features"], twin[0]["features"])
        assert [m["content"][-1] for m in sample.messages] == [m["content"][-1] for m in other.messages]
        part = first[0]
        assert part["features"].dtype == np.float16 and part["features"].shape[1:] == (49, 1280)
        assert len(part["features"]) == len(part["timestamps"]) == sum(part["segments"])
        assert (np.diff(part["timestamps"]) > 0).all() and part["timestamps"][-1] < part["duration"]
        assert [m["role"] for m in sample.messages] == ["user", "assistant"] * len(sample.meta["turns"])
        assert 1 <= len(sample.meta["turns"]) <= 8
    assert data[0].messages[0]["content"][-1] != data[1].messages[0]["content"][-1]
    with pytest.raises(IndexError):
        data[200]


def test_times_in_answers_are_edges_that_the_model_can_see(bank: FeatureBank) -> None:
    """Every time an answer gives is an edge of a segment, within half a frame step of the true cut."""
    for i in range(30):
        sample = _dataset(bank, kinds=("when", "describe"), frames=32)[i]
        part, duration = sample.messages[0]["content"][0], sample.meta["duration"]
        times = part["timestamps"]
        edges = np.concatenate([[0.0], (times[1:] + times[:-1]) / 2, [duration]])
        for turn in sample.meta["turns"]:
            told = [float(t) for t in re.findall(r"\{t:([\d.]+)\}", turn.answer)]
            assert all(np.abs(edges - t).min() < 0.006 for t in told)
            truth = [t for span in turn.spans for t in span]
            assert np.abs(np.array(told) - truth).max() <= duration / 32 / 2 + 0.01


def test_what_is_shown_again_is_told_once(bank: FeatureBank) -> None:
    """Shots that go on with the thing before: other features, one name in a list, one span in a description."""
    repeated = 0
    for i in range(12):
        sample = SmolDataset("class", 60, bank=bank, shots=(4, 6), again=0.6, kinds=("list", "describe"), classes=1.0)[
            i
        ]
        shots = sample.meta["clip"].shots
        names = [[item.name.noun for item in shot.items] for shot in shots]
        runs = [key for key, _ in itertools.groupby(names)]
        repeated += len(names) - len(runs)
        for turn in sample.meta["turns"]:
            if turn.kind == "describe":
                assert len(turn.spans) == len(runs) == turn.answer.count("From")
                assert [s[0] for s in turn.spans[1:]] == [s[1] for s in turn.spans[:-1]]
            else:
                assert len(turn.truth.split("|")) == len({noun for run in runs for noun in run})
    assert repeated > 12


def test_in_footage_little_can_be_named(bank: FeatureBank) -> None:
    """One to three shots have names, the shortest among them; of the others the classifier is not sure, and no answer tells."""
    for i in range(15):
        sample = SmolDataset("class", 60, bank=bank, shots=(6, 12), frames=32, moments=1.0, footage=1.0)[i]
        shots = sample.meta["clip"].shots
        named = [s for s in shots if s.items]
        assert 1 <= len(named) <= 3 and min(shots, key=lambda s: s.end - s.start) in named
        part = sample.messages[0]["content"][0]
        weight, bias = classifier()
        for features, t in zip(part["features"], part["timestamps"], strict=True):
            if not sample.meta["clip"].shot_at(float(t)).items:
                logits = features.astype(np.float32).mean(0) @ weight.T + bias
                assert np.exp(logits - logits.max()).sum() >= 1 / VAGUE
        nouns = {i.name.noun for s in named for i in s.items} | {i.name.plural for s in named for i in s.items}
        listed = [words for t in sample.meta["turns"] if t.kind == "list" for words in t.truth.split("|")]
        assert all(any(noun in words for noun in nouns) for words in listed)


def test_the_moment_may_be_the_last_shot(bank: FeatureBank) -> None:
    for i in range(20):
        sample = SmolDataset("class", 60, bank=bank, shots=(4, 12), frames=64, moments=1.0, last=1.0)[i]
        lengths = [s.end - s.start for s in sample.meta["clip"].shots]
        assert lengths[-1] == pytest.approx(min(lengths), abs=0.11)


def test_every_shot_is_seen(bank: FeatureBank) -> None:
    for i in range(60):
        sample = SmolDataset("class", 60, bank=bank, shots=(6, 8), frames=16)[i]
        times = sample.messages[0]["content"][0]["timestamps"]
        for shot in sample.meta["clip"].shots:
            assert ((times >= shot.start) & (times < shot.end)).any()


def test_negatives_are_unrelated_to_what_is_shown(bank: FeatureBank) -> None:
    assert related("electric guitar", "guitar") and related("orca", "killer whale") and not related("frog", "lion")
    for i in range(40):
        sample = _dataset(bank, kinds=("presence",))[i]
        nouns = [item.name.noun for s in sample.meta["clip"].shots for item in s.items]
        for turn in sample.meta["turns"]:
            assert (turn.truth == "yes") == any(n in turn.question for n in nouns), turn.question


def test_presence_is_asked_before_other_questions_on_demand(bank: FeatureBank) -> None:
    usual, first = _dataset(bank), _dataset(bank, presence_first=1.0)
    moved = 0
    for i in range(40):
        kinds = [t.kind for t in first[i].meta["turns"]]
        assert kinds == sorted(kinds, key=lambda kind: kind != "presence")
        assert sorted(kinds) == sorted(t.kind for t in usual[i].meta["turns"])
        moved += kinds != [t.kind for t in usual[i].meta["turns"]]
    assert moved > 10


def test_frames_and_files_show_the_described_clip(bank: FeatureBank, tmp_path: Path) -> None:
    options = {"seconds": (5.0, 8.0), "frames": 16, "speech": 1.0}
    drawn = SmolDataset("picture", 3, medium="frames", **options)[1]  # type: ignore[arg-type]
    video = drawn.messages[0]["content"][0]["video"]
    assert isinstance(video, Video) and video.frames.shape[0] == 16
    written = SmolDataset("picture", 3, medium="file", folder=str(tmp_path), **options)[1]  # type: ignore[arg-type]
    assert [m["content"][-1] for m in written.messages] == [m["content"][-1] for m in drawn.messages]
    loaded = load_video(written.messages[0]["content"][0]["video"], num_frames=16)
    assert loaded.duration == pytest.approx(video.duration, abs=0.06)
    clip: Clip = written.meta["clip"]
    frame = clip.render(float(loaded.timestamps[5]), loaded.frames.shape[1:3])
    assert np.abs(frame.astype(int) - loaded.frames[5]).mean() < 8


def test_a_drawn_clip_is_heard_at_the_rate_of_whisper() -> None:
    data = conversations("picture", size=40, medium="frames", speech=1.0, seconds=(8, 8), shots=(1, 1), frames=4)
    sounds = [audio for i in range(4) if (audio := data[i].messages[0]["content"][0]["video"].audio) is not None]
    assert sounds and all(audio.rate == 16_000 and audio.samples.shape[1] == 8 * 16_000 for audio in sounds)


def test_wrong_arguments_name_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"split='test'.*train"):
        conversations("test", size=1)
    for wrong in ({"shots": (0, 0)}, {"seconds": (0, 5)}, {"turns": (4, 3)}, {"kinds": ("size",)}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}="):
            conversations(size=1, **wrong)
    with pytest.raises(ConfigError, match=r"medium='pixels'.*features"):
        conversations("train", size=1, medium="pixels")
    assert conversations("train", size=5, kinds=("when",)).kinds == ("when",)
    assert set(KINDS) == set(PHRASINGS)
