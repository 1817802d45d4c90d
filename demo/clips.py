"""The example clips and a question for each: what the row of buttons under the chat offers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "examples"


@dataclass(frozen=True)
class Example:
    """One button.

    Attributes:
        clip: File in ``demo/examples``.
        label: What the button says.
        question: What it asks.
    """

    clip: str
    label: str
    question: str

    @property
    def path(self) -> Path:
        """Where the clip lies."""
        return FOLDER / self.clip


EXAMPLES = (
    Example("photographs.mp4", "Photographs: when is the cat there?", "When does the cat appear?"),
    Example("photographs.mp4", "Photographs: describe them", "Describe the video with times."),
    Example("big_buck_bunny.mp4", "Bunny: what is there?", "What is in this video?"),
    Example("shapes.mp4", "Shapes: when is the square there?", "When does the purple square appear?"),
)


def available() -> list[Example]:
    """Examples whose clip is there."""
    return [e for e in EXAMPLES if e.path.is_file()]
