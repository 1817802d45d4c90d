"""Conversations per tab: reuse, a fresh start for another look, stopping, and a bound on how many are kept."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from demo.intake import Look, Settings
from demo.sessions import MAX_QUESTION_CHARACTERS, Session, Sessions
from tests.demo.conftest import AGAIN, QUESTION, SPOKEN, Pace
from vlm.chat import Assistant
from vlm.errors import ConfigError, MediaError

LOOK = Look(num_frames=4)
SETTINGS = Settings(LOOK, max_new_tokens=60, temperature=0.0)


def ask(session: Session, question: str, *files: Path, look: Look = LOOK) -> str:
    session.begin(question, files)
    session.see(files, look)
    for _ in session.ask(SETTINGS):
        pass
    return session.transcript[-1]["content"]


@pytest.fixture
def session(parrot: Assistant) -> Session:
    return Sessions(parrot).get("tab")


def test_a_follow_up_reads_nothing_again(session: Session, clip: Path) -> None:
    assert ask(session, QUESTION, clip) == SPOKEN
    chat = session.chat
    assert ask(session, AGAIN) == SPOKEN
    assert session.chat is chat and session.read_seconds == 0.0
    assert chat.reply is not None and chat.reply.usage.frames == 0 and chat.reply.usage.reused_tokens > 50
    assert [m["role"] for m in session.transcript] == ["user", "assistant"] * 2
    assert session.transcript[0]["content"] == f"▸ clip.mp4\n{QUESTION}"


def test_another_look_begins_afresh_with_the_same_clip(session: Session, clip: Path) -> None:
    ask(session, QUESTION, clip)
    chat = session.chat
    ask(session, QUESTION, look=Look(num_frames=2, start=1.0))
    assert session.chat is not chat
    assert session.chat.reply is not None
    assert session.chat.reply.usage.frames == 2 and session.chat.reply.usage.reused_tokens == 0
    assert session.media is not None and session.media.video is not None and session.media.video.start == 1.0


def test_a_bad_file_leaves_the_conversation_alone(session: Session, clip: Path, broken: Path) -> None:
    ask(session, QUESTION, clip)
    with pytest.raises(MediaError):
        ask(session, "And this?", broken)
    assert session.files == (clip,)
    assert ask(session, AGAIN) == SPOKEN
    assert session.chat.reply is not None and session.chat.reply.usage.reused_tokens > 0


def test_no_file_no_answer(session: Session) -> None:
    with pytest.raises(ConfigError, match="Attach a video"):
        ask(session, "Hello?")


def test_too_long_a_question_or_conversation(session: Session, clip: Path) -> None:
    with pytest.raises(ConfigError, match="characters"):
        ask(session, "x" * (MAX_QUESTION_CHARACTERS + 1), clip)
    ask(session, QUESTION, clip)
    session.chat.state.ids += [0] * 2000  # the tiny model has 2048 positions
    with pytest.raises(ConfigError, match="at most 2048"):
        ask(session, AGAIN)


def test_stop_from_another_thread_ends_at_the_next_token(session: Session, clip: Path, pace: Pace) -> None:
    session.begin(QUESTION, [clip])
    session.see([clip], LOOK)
    texts = []
    for text in session.ask(SETTINGS):
        texts.append(text)
        if len(texts) == 3:
            stopper = threading.Thread(target=session.stop)
            stopper.start()
            stopper.join()
    assert len(texts) <= 4 and 3 <= pace.passes <= 6
    assert session.transcript[-1]["content"] and SPOKEN.startswith(session.transcript[-1]["content"])


def test_stop_before_the_first_word_asks_the_model_nothing(session: Session, clip: Path, pace: Pace) -> None:
    session.begin(QUESTION, [clip])
    session.see([clip], LOOK)
    session.stop()
    assert list(session.ask(SETTINGS)) == []
    assert pace.passes == 0 and session.transcript[-1]["content"] == "(stopped)"
    assert ask(session, QUESTION) == SPOKEN


def test_an_answer_that_is_cut_off_does_not_spoil_the_next(session: Session, clip: Path) -> None:
    session.begin(QUESTION, [clip])
    session.see([clip], LOOK)
    stream = session.ask(SETTINGS)
    next(stream)
    stream.close()
    assert ask(session, QUESTION) == SPOKEN
    assert session.chat.reply is not None and session.chat.reply.usage.frames == 4


def test_the_least_recently_used_tab_goes_and_its_memory_with_it(parrot: Assistant, clip: Path) -> None:
    sessions = Sessions(parrot, max_sessions=2)
    first = sessions.get("a")
    ask(first, QUESTION, clip)
    gone: list[Any] = [weakref.ref(first), weakref.ref(first.chat), weakref.ref(first.chat.state.cache)]
    sessions.get("b")
    assert sessions.get("a") is first
    sessions.get("c")
    assert "a" in sessions and "b" not in sessions and len(sessions) == 2
    del first
    sessions.drop("a")
    sessions.drop("never there")
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3
    assert len(sessions) == 1


def test_max_sessions_must_be_positive(parrot: Assistant) -> None:
    with pytest.raises(ConfigError, match="max_sessions"):
        Sessions(parrot, max_sessions=0)
