"""What `smol` is trained on: conversations about clips, about still pictures, and about speech alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data_recipes.sample import Message, Sample, assistant, rng_for, user
from data_recipes.synth.features import FeatureBank
from data_recipes.synth.smol import SmolDataset, conversations
from data_recipes.synth.smol_questions import PHRASINGS, mark
from data_recipes.synth.speech import any_sentence

STILL_KINDS = ("list", "count", "colour", "where")
_WHEN_SAID = ("When is it said?", "When does the voice speak?", "When do you hear it?")


@dataclass(frozen=True)
class SmolMixture:
    """Conversations of three sorts; item ``i`` depends only on the fields and ``i``.

    Attributes:
        size: Number of conversations.
        seed: Of all randomness.
        stills: Share of conversations about one picture, given as an image.
        listening: Share of conversations about speech without pictures.
        varied: Share of the pictures that are made-up variations of the training pictures.
        classes: Share of the shots that show an ImageNet class.
        presence_first: Share of the conversations about clips that ask what is there before other questions tell it.
        shots: Least and most shots of a clip.
        moments: Share of the clips in which one shot lasts a sampled frame or two.
        frames: Frames that the model samples of a clip; 16, 32 or 64 by default.
        bank: Features to draw from; the training bank by default.
    """

    size: int
    seed: int = 0
    stills: float = 0.15
    listening: float = 0.1
    varied: float = 0.6
    classes: float = 0.4
    presence_first: float = 0.0
    shots: tuple[int, int] = (1, 8)
    moments: float = 0.0
    frames: int | None = None
    bank: FeatureBank | None = None
    clips: SmolDataset = field(init=False)
    pictures: SmolDataset = field(init=False)

    def __post_init__(self) -> None:
        common: dict[str, Any] = {"size": self.size, "varied": self.varied, "classes": self.classes}
        clips = conversations(
            "train",
            seed=self.seed,
            shots=self.shots,
            turns=(5, 10),
            presence_first=self.presence_first,
            moments=self.moments,
            frames=self.frames,
            **common,
        )
        pictures = conversations(
            "train", seed=self.seed + 1, shots=(1, 1), turns=(2, 4), kinds=STILL_KINDS, speech=0.0, **common
        )
        object.__setattr__(self, "clips", replace(clips, bank=self.bank))
        object.__setattr__(self, "pictures", replace(pictures, bank=self.bank))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        rng = rng_for(self.seed, 3, index)
        sort = rng.random()
        if sort < self.listening:
            return self._listening(index, rng)
        if sort < self.listening + self.stills:
            return _as_picture(self.pictures[index])
        return self.clips[index]

    def _listening(self, index: int, rng: np.random.Generator) -> Sample:
        """Something is said in a sound file of a few seconds; it is to be written down."""
        text = any_sentence(rng)
        seconds = 0.35 * len(text.split()) + 0.3
        start = float(rng.uniform(0, 1.5))
        duration = start + seconds + float(rng.uniform(0, 1.5))
        heard = {"type": "transcript", "pieces": [(start, start + seconds, text)], "duration": duration}
        options = PHRASINGS["said"][0]
        question = options[int(rng.integers(len(options)))].replace(" in the video", "")
        messages = [user(heard, question), assistant(text)]
        if rng.random() < 0.5:
            when = _WHEN_SAID[int(rng.integers(len(_WHEN_SAID)))]
            messages += [user(when), assistant(f"From {mark(start)} to {mark(start + seconds)}.")]
        return Sample(f"smol-listening-{self.seed}-{index}", messages, {"duration": duration})


def _as_picture(sample: Sample) -> Sample:
    """The first frame of a one-shot clip as an image, asked about as a picture."""
    video = sample.messages[0]["content"][0]
    picture: dict[str, Any] = {"type": "image", "features": video["features"][0]}
    messages: list[Message] = []
    for i, message in enumerate(sample.messages):
        text = message["content"][-1]["text"]
        if message["role"] == "user":
            messages.append(user(*([picture] if i == 0 else []), text.replace("video", "picture")))
        else:
            messages.append(message)
    return Sample(f"{sample.id}-still", messages, sample.meta)
