"""From raw video to an answer with times in it.

>>> import vlm
>>> assistant = vlm.load("smol")
>>> reply = assistant.chat("When does the fox appear?", video="clip.mp4")
>>> reply.text, reply.spans

Importing this package is light: torch and transformers load when a name below is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "load": "vlm.presets",
    "compose": "vlm.compose",
    "Assistant": "vlm.chat",
    "Chat": "vlm.chat",
    "Reply": "vlm.chat",
    "VLMConfig": "vlm.config",
    "VLMForConditionalGeneration": "vlm.model",
    "VLMProcessor": "vlm.processor",
    "VLMError": "vlm.errors",
    "load_video": "vlm.media",
    "load_audio": "vlm.media",
    "load_image": "vlm.media",
    "Video": "vlm.media",
    "Audio": "vlm.media",
    "Span": "vlm.time.span",
}

__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'vlm' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
