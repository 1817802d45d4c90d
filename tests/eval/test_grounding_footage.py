"""Real footage cut together: every scene is where the truth says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.grounding_footage import Cut, cut, scenes
from vlm.errors import CheckpointError, DataError
from vlm.media import load_video


def made(index: int, folder: Path) -> Cut:
    try:
        return cut(index, folder, seed=3, seconds=12.0)
    except (DataError, CheckpointError) as error:
        pytest.skip(str(error))


def small(frame: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize((32, 24))).astype(int)


def test_scenes_are_where_the_truth_says(tmp_path: Path) -> None:
    made(0, tmp_path)  # or there is nothing to look at
    looks = {}
    for scene in scenes():
        frames = load_video(scene.film, start=scene.start, end=scene.end, num_frames=20).frames
        looks[scene.what] = np.stack([small(frame) for frame in frames])
    for clip in (made(i, tmp_path) for i in range(3)):
        video = load_video(clip.path, num_frames=120)
        assert video.duration == pytest.approx(clip.duration, abs=0.05) and clip.parts[-1][1].end == clip.duration
        assert len({what for what, _ in clip.parts}) == len(clip.parts) >= 3
        for what, span in clip.parts:
            assert span.length >= 0.1 * clip.duration - 0.1
            for t in (span.start + 0.06, span.end - 0.06):  # the first frame and the last
                frame = video.frames[np.abs(video.timestamps - t).argmin()]
                distance = {name: np.abs(small(frame) - look).mean((1, 2, 3)).min() for name, look in looks.items()}
                assert min(distance, key=lambda name: distance[name]) == what
        asked = list(clip.questions("clip"))
        assert [truth.truth for _, truth, _ in asked] == [(span,) for _, span in clip.parts]
