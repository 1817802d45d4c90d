"""One conversation per browser tab, and how many of them are kept.

A follow-up question goes into the same `vlm.chat.Chat`, so it reuses the encoded frames and the language model's cache.
A new clip, or another look at the same clip (frames, window), begins a new `Chat`: times always refer to one clip.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.intake import Look, Media, Settings, read_files
from vlm.chat import Chat
from vlm.errors import ConfigError

if TYPE_CHECKING:
    from vlm.chat import Assistant

MAX_QUESTION_CHARACTERS = 2000


@dataclass
class Session:
    """What one browser tab has said and seen.

    Attributes:
        assistant: The shared model.
        chat: The conversation with it.
        files: Files that were last given.
        look: How they were last read; None if they must be read again.
        media: What they held, until the question that came with them is answered.
        transcript: What the page shows: ``{"role", "content"}``.
        question: The current one.
        read_seconds: Time spent reading files for the current question.
    """

    assistant: Assistant
    chat: Chat
    files: tuple[Path, ...] = ()
    look: Look | None = None
    media: Media | None = None
    transcript: list[dict[str, str]] = field(default_factory=list)
    question: str = ""
    read_seconds: float = 0.0
    _pending: dict[str, Any] = field(default_factory=dict)
    _stopped: bool = False

    def begin(self, question: str, files: Sequence[Path]) -> None:
        """A question arrives: write it down, and forget an earlier wish to stop."""
        self._stopped = False
        self.question = question
        self.transcript.append({"role": "user", "content": "\n".join([*(f"▸ {f.name}" for f in files), question])})

    def say(self, text: str) -> None:
        """The page's own words, in place of an answer that did not begin or under one that broke off."""
        last = self.transcript[-1]
        if last["role"] == "assistant" and not last["content"]:
            last["content"] = text
        else:
            self.transcript.append({"role": "assistant", "content": text})

    def stop(self) -> None:
        """End the answer at its next token; may be called from another thread."""
        self._stopped = True
        self.chat.stop()

    def see(self, files: Sequence[Path], look: Look) -> None:
        """Read the files if they are new or are to be looked at differently; then the conversation begins afresh.

        Raises:
            MediaError: A file cannot be used; the conversation stays as it was.
            ConfigError: There has been no file yet.
        """
        self.read_seconds = 0.0
        if not files and not self.files:
            raise ConfigError("Attach a video, a picture or a sound first, or pick an example below the chat.")
        if not files and look == self.look:
            return
        began = time.perf_counter()
        chosen = tuple(files) or self.files
        media = read_files(chosen, look, self.assistant.processor)
        self.files, self.look, self.media, self._pending = chosen, look, media, media.options
        self.chat = self.assistant.conversation()
        self.read_seconds = time.perf_counter() - began

    def ask(self, settings: Settings) -> Generator[str]:
        """The growing answer, written into the transcript as well; `chat.reply` holds the whole one afterwards.

        If it is cut off, the files are read again for the next question.

        Raises:
            ConfigError: The question or the conversation is too long.
        """
        if len(self.question) > MAX_QUESTION_CHARACTERS:
            raise ConfigError(
                f"The question has {len(self.question)} characters; at most {MAX_QUESTION_CHARACTERS} are read."
            )
        self._check_room(settings.max_new_tokens)
        answer = {"role": "assistant", "content": ""}
        self.transcript.append(answer)
        finished = False
        try:
            for text in () if self._stopped else self._stream(settings):
                answer["content"] = text
                yield text
                if self._stopped:
                    self.chat.stop()
            finished = True
            reply = self.chat.reply
            answer["content"] = (reply.text if reply else "") or ("(stopped)" if self._stopped else "(no answer)")
        finally:
            if not finished:
                self.look, self.chat = None, self.assistant.conversation()

    def _stream(self, settings: Settings) -> Iterator[str]:
        options, self._pending = self._pending, {}
        return self.chat.stream(
            self.question, **options, max_new_tokens=settings.max_new_tokens, temperature=settings.temperature
        )

    def _check_room(self, max_new_tokens: int) -> None:
        room = getattr(self.assistant.model.config.text_config, "max_position_embeddings", None)
        used = len(self.chat.state.ids)
        if room and used and used + max_new_tokens > room:
            raise ConfigError(
                f"This conversation has {used} tokens and the model reads at most {room}. "
                "Begin a new one, or ask for a shorter answer."
            )


class Sessions:
    """The conversations of all open tabs; the least recently used one is dropped when there are too many.

    Args:
        assistant: The shared model.
        max_sessions: How many are kept. One holds its clip's frames and its tokens' cache, 0.1 to 0.2 GB for `smol`.
    """

    def __init__(self, assistant: Assistant, *, max_sessions: int = 8) -> None:
        if max_sessions < 1:
            raise ConfigError(f"max_sessions must be at least 1, not {max_sessions}")
        self.assistant, self.max_sessions = assistant, max_sessions
        self._kept: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def __iter__(self) -> Iterator[Session]:
        with self._lock:
            return iter(list(self._kept.values()))

    def get(self, key: str) -> Session:
        """The tab's session, new if it has none."""
        with self._lock:
            session = self._kept.pop(key, None) or Session(self.assistant, self.assistant.conversation())
            self._kept[key] = session
            dropped = [self._kept.popitem(last=False)[1] for _ in range(len(self._kept) - self.max_sessions)]
        for old in dropped:
            old.stop()
        return session

    def stop(self, key: str) -> None:
        """Stop the tab's answer, if it is being written."""
        with self._lock:
            session = self._kept.get(key)
        if session is not None:
            session.stop()

    def drop(self, key: str) -> None:
        """Forget the tab; an answer being written for it stops at its next token."""
        with self._lock:
            session = self._kept.pop(key, None)
        if session is not None:
            session.stop()
