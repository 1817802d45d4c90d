"""A haystack of noise, and models that need no weights: one that sees every needle, one that guesses."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from eval.needles import Needle
from eval.niah_judge import is_right
from vlm.media import Audio, Video, VideoInfo
from vlm.time import Span, frame_edges

SIZE = 32


@dataclass(frozen=True)
class Noise:
    """A haystack of dark noise, one frame a second."""

    name: str = "noise"

    def __call__(self, num_frames: int) -> Video:
        frames = np.random.default_rng(num_frames).integers(0, 40, (num_frames, SIZE, SIZE, 3), dtype=np.uint8)
        info = VideoInfo("noise", SIZE, SIZE, float(num_frames), 0.0, 1.0, num_frames, "none", 0, False, "drawn")
        times = np.arange(num_frames) + 0.5
        return Video(frames, times, float(num_frames), "noise", None, info, end=float(num_frames))


def sounding(num_frames: int, rate: int = 100) -> Video:
    """Noise with a sound track whose samples count the seconds."""
    from dataclasses import replace

    samples = np.arange(num_frames * rate, dtype=np.float32)[None] / rate
    return replace(Noise()(num_frames), audio=Audio(samples, rate))


@dataclass
class Oracle:
    """Finds needles by their pixels and reads the question; without a needle it says it does not know."""

    needles: list[Needle]
    asked: list[int] = field(default_factory=list)

    def seen(self, video: Video) -> list[Needle]:
        """Needles in the order in which they are shown."""
        return [n for f in video.frames for n in self.needles if np.array_equal(f, n.image)]

    def answer(self, video: Video, question: str) -> str:
        self.asked.append(len(video.frames))
        found = self.seen(video)
        if question in [n.presence for n in self.needles if n.presence]:
            return "yes" if any(n.presence == question for n in found) else "no"
        if question in [n.when for n in self.needles if n.when]:
            places = [i for i, f in enumerate(video.frames) for n in self.needles if np.array_equal(f, n.image)]
            edges = frame_edges(video.timestamps, video.end)
            return f"from {edges[places[0]]} to {edges[places[0] + 1]}" if places else "I do not know."
        if "many" in question or "times" in question:
            return ("none", "one", "two", "three", "four")[len(found)]
        if "order" in question or "digits" in question or "shapes" in question:
            return ", ".join(n.answer for n in found) or "nothing"
        if not found:
            return "I do not know."
        letters = [line[0] for line in question.splitlines() if line[1:] == f". {found[0].answer}"]
        return f"The answer is {letters[0] if letters else found[0].answer}."

    def forced_match(self, video: Video, question: str, answer: str) -> bool:
        return is_right(self.answer(video, question), answer)

    def count_tokens(self, video: Video, question: str) -> int:
        return 4 * len(video.frames) + len(question)

    def spans(self, video: Video, reply: str) -> list[Span]:
        words = [word for word in reply.split() if word.replace(".", "").isdigit()]
        return [Span(float(words[0]), float(words[1]))] if len(words) == 2 else []


@dataclass
class Guesser(Oracle):
    """Guesses among the answers, or always says the same thing."""

    says: str | None = None
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def answer(self, video: Video, question: str) -> str:
        choices = "ABCD" if "A." in question else [n.answer for n in self.needles]
        return self.says or str(self.rng.choice(list(choices)))
