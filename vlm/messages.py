"""Chat messages from outside: checked once, so that a malformed one ends in an error that names the message and the key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm.errors import ConfigError

_EXAMPLE = '[{"role": "user", "content": "..."}]'


def conversations_of(messages: Any) -> tuple[list[Any], bool]:
    """The conversations in ``messages``, and whether they were given as a list of conversations rather than as one.

    Raises:
        ConfigError: Not a list, or an empty one.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise ConfigError(f"messages={messages!r} is not a conversation; give a list like {_EXAMPLE}")
    many = isinstance(messages[0], list | tuple)
    return (list(messages) if many else [messages]), many


def contents_of(messages: Any) -> list[list[dict[str, Any]]]:
    """The content parts of every message of one conversation; a content that is a string becomes one text part.

    Raises:
        ConfigError: A message or part is malformed; names the message, the key and what is expected.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise ConfigError(f"messages={messages!r} is not a conversation; give a list like {_EXAMPLE}")
    return [_parts(message, f"message {index}") for index, message in enumerate(messages)]


def needed(part: Mapping[str, Any], *keys: str) -> list[Any]:
    """The values of ``keys`` in a content part.

    Raises:
        ConfigError: One of them is missing or None.
    """
    missing = [key for key in keys if part.get(key) is None]
    if missing:
        raise ConfigError(f"a {part.get('type')} part lacks {', '.join(map(repr, missing))}; got keys {sorted(part)}")
    return [part[key] for key in keys]


def _parts(message: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(message, Mapping):
        raise ConfigError(f"{name} is {message!r}; give a dictionary like {_EXAMPLE[1:-1]}")
    if not isinstance(message.get("role"), str):
        raise ConfigError(f"{name} needs a string under 'role' (user, assistant, system), got {message.get('role')!r}")
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple):
        raise ConfigError(f"{name} needs a string or a list of parts under 'content', got {content!r}")
    return [_checked_part(part, f"{name}, part {index}") for index, part in enumerate(content)]


def _checked_part(part: Any, name: str) -> dict[str, Any]:
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        shown = f"keys {sorted(map(str, part))}" if isinstance(part, Mapping) else repr(part)
        raise ConfigError(f'{name} needs a \'type\', as in {{"type": "text", "text": "..."}}; got {shown}')
    if part["type"] == "text" and not isinstance(part.get("text"), str):
        raise ConfigError(f"{name} needs a string under 'text', got {part.get('text')!r}")
    return dict(part)
