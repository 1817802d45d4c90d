"""`AssistantModel`: a model of this package as evaluations see it, with every frame encoded once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vlm.chat import Assistant
from vlm.generate import DecodeState, stop_token_ids, stream_ids
from vlm.media import Video
from vlm.model import MEDIA_KEYS
from vlm.prepare import normalise
from vlm.time.shots import find_shots

BATCH_FRAMES = 32


@dataclass
class AssistantModel:
    """Answers and teacher-forced scores of an `Assistant`.

    Vision features are kept per frame, keyed by its pixels, because evaluations show the same frames again and again:
    a needle in another place costs the language model's time only.

    Attributes:
        assistant: Model and processor.
        max_new_tokens: Longest free answer.
        max_cached_frames: Features are forgotten, oldest first, beyond this many frames.
    """

    assistant: Assistant
    max_new_tokens: int = 32
    max_cached_frames: int = 4096
    _features: dict[bytes, torch.Tensor] = field(default_factory=dict, repr=False)

    def answer(self, video: Video, question: str) -> str:
        """The model's own words, greedy, time tokens included."""
        model, processor = self.assistant.model, self.assistant.processor
        prompt = processor.prompt(self._messages(video, question), add_generation_prompt=True)
        with torch.inference_mode():
            embeds = model.fuse(
                torch.tensor([prompt.ids], device=model.device), **self._media(processor.tensors(prompt))
            )
        ids = stream_ids(
            model,
            DecodeState(),
            embeds,
            prompt.ids,
            stop_ids=stop_token_ids(model, processor.tokenizer),
            max_new_tokens=self.max_new_tokens,
        )
        return processor.decode_reply(list(ids))

    def forced_match(self, video: Video, question: str, answer: str) -> bool:
        """Whether each token of ``answer`` (not the end of the turn) is the most likely one after those before it."""
        targets, logits = self._forced(video, question, answer)
        return bool((logits.argmax(-1) == targets).all())

    def count_tokens(self, video: Video, question: str) -> int:
        """Length of the prompt in tokens."""
        return len(self.assistant.processor.prompt(self._messages(video, question), add_generation_prompt=True).ids)

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with the weights or with the token layout."""
        total = hashlib.blake2b(repr(self.assistant.processor.layout).encode(), digest_size=6)
        for name, value in sorted(self.assistant.model.state_dict().items()):
            total.update(name.encode())
            total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return total.hexdigest()

    def _forced(self, video: Video, question: str, answer: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Answer ids ``[A]`` and the logits ``[A, V]`` that predict them."""
        model, processor = self.assistant.model, self.assistant.processor
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        batch = processor.collate([processor.training_example([*self._messages(video, question), reply])])
        ids, labels = batch["input_ids"], batch["labels"][0]
        places = (labels != -100).nonzero().flatten()[:-1]
        with torch.inference_mode():
            embeds = model.fuse(ids.to(model.device), **self._media(batch))
            keep = (places - 1).to(model.device)
            logits = model(inputs_embeds=embeds, logits_to_keep=keep, loss_only=False).logits[0]
        return labels[places].to(logits.device), logits.float()

    def _messages(self, video: Video, question: str) -> list[dict[str, Any]]:
        part = {
            "type": "video",
            "features": self._encode(video.frames),
            "timestamps": np.clip(video.timestamps - video.start, 0.0, video.end - video.start),
            "duration": video.end - video.start,
        }
        pooling = self.assistant.processor.layout["pooling"]
        if pooling["mode"] == "segments":
            part["segments"] = find_shots(video.frames, **pooling.get("shots", {}))
        return [{"role": "user", "content": [part, {"type": "text", "text": question}]}]

    def _encode(self, frames: np.ndarray) -> torch.Tensor:
        """Vision features ``[T, P, E]`` of frames ``uint8 [T, H, W, 3]``."""
        model, pixels = self.assistant.model, self.assistant.processor.pixels
        keys = [hashlib.blake2b(f.tobytes() + str(f.shape).encode(), digest_size=16).digest() for f in frames]
        new = list({k: i for i, k in enumerate(keys) if k not in self._features}.items())
        for first in range(0, len(new), BATCH_FRAMES):
            chunk = new[first : first + BATCH_FRAMES]
            with torch.inference_mode():
                x = normalise(frames[[i for _, i in chunk]], pixels).to(model.device, model.dtype)
                features = model.encode_frames(x).float().cpu()
            self._features.update({k: f for (k, _), f in zip(chunk, features, strict=True)})
        found = torch.stack([self._features[k] for k in keys])
        for key in list(self._features)[: max(0, len(self._features) - self.max_cached_frames)]:
            del self._features[key]
        return found

    def _media(self, tensors: dict[str, Any]) -> dict[str, Any]:
        device = self.assistant.model.device
        return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in tensors.items() if k in MEDIA_KEYS}
