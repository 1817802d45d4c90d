"""`AssistantModel`: a model of this package as evaluations see it, with every frame encoded once and every prompt read once."""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vlm.chat import Assistant
from vlm.decode import KVCache, decoder_for
from vlm.errors import ConfigError
from vlm.generate import DecodeState, repeated_tail, stop_token_ids, stream_ids
from vlm.media import Audio, Video
from vlm.model import MEDIA_KEYS
from vlm.prepare import check_rate, normalise
from vlm.processor import MEDIA_TOKENS, Prompt
from vlm.time import Span
from vlm.time.shots import find_shots

BATCH_FRAMES = 32


@dataclass
class _Reading:
    """What was asked last, and how far the language model has read it.

    Attributes:
        video, question: Of the prompt.
        part: The video's content parts, encoded; they serve other questions about the same video.
        prompt: Ids and media.
        state: Holds at least the prompt without its last token.
        last: Embedding of that last token, ``[1, 1, D]``.
    """

    video: Video
    question: str
    part: list[dict[str, Any]]
    prompt: Prompt
    state: DecodeState
    last: torch.Tensor


@dataclass
class AssistantModel:
    """Answers and teacher-forced scores of an `Assistant`.

    Vision features are kept per frame, keyed by its pixels, because evaluations show the same frames again and again: a needle in
    another place costs the language model's time only. Keys and values are kept of the last prompt: its free answer and its forced one
    read it once, and the next question about the same `Video` object reads only its own words. Nothing is reused between different
    videos. All of it is exact; that several frames or words are computed in one go or in two changes roundings only.

    Attributes:
        assistant: Model and processor.
        max_new_tokens: Longest free answer.
        max_cached_frames: Features of frames of earlier videos are forgotten, oldest first, beyond this many frames.
    """

    assistant: Assistant
    max_new_tokens: int = 32
    max_cached_frames: int = 4096
    _features: dict[bytes, torch.Tensor] = field(default_factory=dict, repr=False)
    _reading: _Reading | None = field(default=None, repr=False)

    def answer(self, video: Video, question: str) -> str:
        """The model's own words, greedy, time tokens included."""
        model, processor = self.assistant.model, self.assistant.processor
        reading = self._read(video, question)
        stream = stream_ids(
            model,
            reading.state,
            reading.last,
            reading.prompt.ids[-1:],
            stop_ids=stop_token_ids(model, processor.tokenizer),
            max_new_tokens=self.max_new_tokens,
            escape=True,
        )
        ids: list[int] = []
        with closing(stream):
            for token in stream:
                ids.append(token)
                if circle := repeated_tail(ids):  # as `Chat` does: keep the first round
                    del ids[-3 * circle :]
                    break
        return processor.decode_reply(ids)

    def forced_match(self, video: Video, question: str, answer: str) -> bool:
        """Whether each token of ``answer`` (not the end of the turn) is the most likely one after those before it."""
        targets, logits = self._forced(video, question, answer)
        return bool((logits.argmax(-1) == targets).all())

    def count_tokens(self, video: Video, question: str) -> int:
        """Length of the prompt in tokens."""
        return len(self._read(video, question).prompt.ids)

    def spans(self, video: Video, reply: str) -> list[Span]:
        """The times that a reply of `answer` names, in seconds of the video's clock."""
        return self.assistant.processor.codec.parse(reply, video.end - video.start, offset=video.start).spans

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with the weights or with the token layout."""
        total = hashlib.blake2b(repr(self.assistant.processor.layout).encode(), digest_size=6)
        for name, value in sorted(self.assistant.model.state_dict().items()):
            total.update(name.encode())
            total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return total.hexdigest()

    def _forced(self, video: Video, question: str, answer: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Answer ids ``[A]`` and the logits ``[A, V]`` that predict them."""
        reading = self._read(video, question)
        targets = self.assistant.processor.text_ids(answer, reading.prompt.duration)
        state, length = reading.state, len(reading.prompt.ids) + len(targets)
        decoder, state.cache = decoder_for(self.assistant.model.language_model, state.cache, tokens=length)
        logits = [decoder.read(state.cache, reading.last)]
        state.ids += reading.prompt.ids[-1:]
        for token in targets[:-1]:
            logits.append(decoder.step(state.cache, token))
            state.ids.append(token)
        return torch.tensor(targets), torch.stack(logits).float().cpu()

    def _read(self, video: Video, question: str) -> _Reading:
        """The prompt, read up to its last token; what the last prompt has in common with it is not read again."""
        before = self._reading
        if before is None or before.video is not video:
            self._reading = before = None  # frees its keys and values
            part, state = self._parts(video), DecodeState()
        else:
            part, state = before.part, before.state
        if before is not None and before.question == question:
            prompt = before.prompt
        else:
            message = {"role": "user", "content": [*part, {"type": "text", "text": question}]}
            prompt = self.assistant.processor.prompt([message], add_generation_prompt=True)
        last = self._advance(state, prompt)
        self._reading = _Reading(video, question, part, prompt, state, last)
        return self._reading

    def _advance(self, state: DecodeState, prompt: Prompt) -> torch.Tensor:
        """Bring ``state`` to the prompt without its last token; that token's embedding."""
        model, processor = self.assistant.model, self.assistant.processor
        ids = prompt.ids
        same = next((i for i, (a, b) in enumerate(zip(state.ids, ids, strict=False)) if a != b), len(state.ids))
        media = {processor.token_id(t) for t in MEDIA_TOKENS}
        keep = min(same, len(ids) - 1)
        state.rewind(keep if keep > max((i for i, t in enumerate(ids) if t in media), default=0) else 0)
        rest, held = ids[len(state.ids) :], bool(state.ids)
        with torch.inference_mode():
            inputs = {} if held else self._media(processor.tensors(prompt))
            embeds = model.fuse(torch.tensor([rest], device=model.device), **inputs)
            if len(rest) > 1:
                decoder, state.cache = decoder_for(model.language_model, state.cache, tokens=len(ids))
                if isinstance(state.cache, KVCache):  # at once: room that has to grow is doubled
                    state.cache.reserve(len(rest) + self.max_new_tokens)
                decoder.read(state.cache, embeds[:, :-1])
                state.ids += rest[:-1]
        return embeds[:, -1:]

    def _parts(self, video: Video) -> list[dict[str, Any]]:
        """The video, and its sound if it has any, as content parts."""
        part: dict[str, Any] = {
            "type": "video",
            "features": self._encode(video.frames),
            "timestamps": np.clip(video.timestamps - video.start, 0.0, video.end - video.start),
            "duration": video.end - video.start,
        }
        pooling = self.assistant.processor.layout["pooling"]
        if pooling["mode"] == "segments":
            part["segments"] = find_shots(video.frames, **pooling.get("shots", {}))
        return [part] if video.audio is None else [part, self._heard(video.audio, video)]

    def _heard(self, audio: Audio, video: Video) -> dict[str, Any]:
        """Sound as `Chat` gives it to the model: itself, or what a transcriber makes of it."""
        ears, transcriber = self.assistant.processor.ears, self.assistant.transcriber
        if not ears:
            raise ConfigError(f"the model {self.assistant.name!r} has no ears; ask it about a video without sound")
        shift, duration = audio.start - video.start, video.end - video.start
        if transcriber is None:
            return {"type": "audio", "audio": audio, "offset": shift, "duration": duration}
        check_rate(audio, ears)
        pieces = [(p.start + shift, p.end + shift, p.text) for p in transcriber(audio.mono())]
        return {"type": "transcript", "pieces": pieces, "duration": duration}

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
        used = set(keys)
        old = [key for key in self._features if key not in used]
        for key in old[: max(0, len(self._features) - self.max_cached_frames)]:
            del self._features[key]
        return found

    def _media(self, tensors: dict[str, Any]) -> dict[str, Any]:
        device = self.assistant.model.device
        return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in tensors.items() if k in MEDIA_KEYS}
