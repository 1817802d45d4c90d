"""Photographs and speech for evaluation."""

from __future__ import annotations

import numpy as np
import pytest

from data_recipes.synth.imagenet import imagenet_classes
from data_recipes.synth.photographs import photographs
from data_recipes.synth.speech import clip_seconds, invented_sentence, read_sentences
from vlm.errors import CheckpointError, DataError, MissingDependencyError

_MISSING = (CheckpointError, DataError, MissingDependencyError)


def test_the_classifier_is_right_on_nearly_every_photograph() -> None:
    try:
        pictures = photographs()
    except _MISSING as error:
        pytest.skip(str(error))
    assert len(pictures) >= 22
    assert all(p.pixels.dtype == np.uint8 and p.class_ids for p in pictures)
    wrong = {p.name: imagenet_classes()[p.teacher].name.noun for p in pictures if not p.teacher_is_right}
    assert set(wrong) <= {"rocket.jpg"}, wrong
    apple = next(p for p in pictures if p.name == "apple.jpg")
    assert apple.true_names == ("Granny Smith",)


def test_read_sentences() -> None:
    try:
        sentences = read_sentences()
    except DataError as error:
        pytest.skip(str(error))
    assert len(sentences) == 5
    assert sentences[1].text == "he was not an ill disposed young man"
    assert all(2.0 < clip_seconds(s.path) < 10.0 for s in sentences)


def test_invented_sentences() -> None:
    try:
        texts = {invented_sentence(np.random.default_rng(i)) for i in range(50)}
    except DataError as error:
        pytest.skip(str(error))
    assert len(texts) > 30
    assert all(t[0].isupper() or not t[0].isalpha() for t in texts)
