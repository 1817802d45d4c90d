"""Clips shared by the media tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vlm.media.clips import encode, regular


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """H.264 mp4, 100 frames at 25 fps, GOP 12, B-frames, index at the front, a tone of 4 s."""
    path = tmp_path_factory.mktemp("media") / "plain.mp4"
    return encode(path, regular(100), options={"bf": "2"}, sound=(16_000, 4.0), muxer={"movflags": "faststart"})
