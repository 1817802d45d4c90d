"""Fixtures that several test files share, and two rules: no test reaches a hub, and no deprecation goes unnoticed."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from vlm.chat import Assistant

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

ROOT = Path(__file__).resolve().parent.parent


class _FailOnDeprecation(logging.Handler):
    """transformers announces deprecations through logging, where pytest's warning filter does not see them."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "deprecated" in message.lower():
            raise DeprecationWarning(f"{record.name}: {message}")


def pytest_configure() -> None:
    logging.getLogger("transformers").addHandler(_FailOnDeprecation(logging.WARNING))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real H.264 file of 2 s: 20 frames of 96x64, frame i grey of brightness 10 * i, with a 440 Hz tone."""
    from vlm.media import Audio, write_video

    frames = np.full((20, 64, 96, 3), 0, np.uint8) + (10 * np.arange(20, dtype=np.uint8))[:, None, None, None]
    tone = np.sin(2 * np.pi * 440 * np.arange(2 * 16_000) / 16_000, dtype=np.float32)
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_video(path, frames, fps=10.0, audio=Audio(0.5 * tone[None, :], 16_000))


@pytest.fixture(scope="session")
def nano() -> Assistant:
    """The smallest shipped model, loaded once."""
    import vlm

    if not (ROOT / "vlm/presets/nano/model.safetensors").exists():
        pytest.skip("the preset nano has no weights in this checkout")
    return vlm.load("nano")
