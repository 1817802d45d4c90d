"""Malformed conversations end in an error that names the message and the key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.tiny import tiny_assistant
from vlm.chat import Assistant
from vlm.errors import ConfigError
from vlm.messages import contents_of, conversations_of

TEXT = {"type": "text", "text": "a"}


@pytest.fixture(scope="module")
def tiny() -> Assistant:
    return tiny_assistant()


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (None, "messages=None"),
        ([], r"messages=\[\]"),
        ([[]], r"messages=\[\]"),
        ("hello", "messages='hello'"),
        (["hello"], "message 0 is 'hello'"),
        ([{"role": "user", "content": "a"}, {"content": "b"}], "message 1 needs a string under 'role'"),
        ([{"role": "user"}], "message 0 needs .* under 'content', got None"),
        ([{"role": "user", "content": None}], "message 0 needs .* under 'content', got None"),
        (user("hello"), "message 0, part 0 needs a 'type'.*got 'hello'"),
        (user(TEXT, {"text": "a"}), "message 0, part 1 needs a 'type'.*keys"),
        (user({"type": "text"}), "message 0, part 0 needs a string under 'text'"),
        (user({"type": "video", "features": np.zeros((2, 4, 32))}), "a video part lacks 'duration', 'timestamps'"),
        (user({"type": "transcript", "pieces": []}), "a transcript part lacks 'duration'"),
    ],
)
def test_what_is_wrong_is_named(tiny: Assistant, messages: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny.processor(messages)


def test_text_of_malformed_messages_is_refused_too(tiny: Assistant) -> None:
    with pytest.raises(ConfigError, match="'role'"):
        tiny.processor.apply_chat_template([{"content": "a"}], tokenize=False)


def test_parts_and_batches() -> None:
    one = [{"role": "user", "content": "a"}]
    assert contents_of(one) == [[TEXT]]
    assert conversations_of(one) == ([one], False)
    assert conversations_of([one, one]) == ([one, one], True)
