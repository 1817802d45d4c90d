"""`Assistant` (a model with its processor) and `Chat` (one conversation): ask about a video, get words and times.

A second question about the same video runs no vision forward and re-reads nothing: `Chat` keeps the language model's cache and only
feeds the ids that are new.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from vlm.encoders.audio import Transcriber, TranscriptPiece
from vlm.errors import ConfigError
from vlm.generate import DecodeState, Sampling, repeated_tail, stop_token_ids, stream_ids
from vlm.media import Audio, Video, load_audio, load_video
from vlm.model import MEDIA_KEYS, VLMForConditionalGeneration
from vlm.prepare import DEFAULT_FRAMES, Medium
from vlm.processor import Prompt, VLMProcessor
from vlm.time.span import Span


@dataclass(frozen=True)
class Usage:
    """Counts and timings of one reply.

    Attributes:
        prompt_tokens: Tokens read for this reply (after reuse of what was read before).
        reused_tokens: Tokens that were in the cache already.
        media_tokens: Placeholders among the prompt tokens.
        completion_tokens: Tokens written.
        frames: Frames that went through the vision tower for this reply.
        seconds: decode (media), encode (towers), prefill, generate, first_token.
    """

    prompt_tokens: int
    reused_tokens: int
    media_tokens: int
    completion_tokens: int
    frames: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        text: What a person reads; times are in seconds.
        spans: Times the answer names, in seconds from the start of the video.
        parts: The answer as content parts (text now; pictures and sound when the model can make them).
        usage: Counts and timings.
        raw: The model's own words, time tokens included.
        parsed: How the times were read (`vlm.time.codec.ParseResult.how`).
    """

    text: str
    spans: list[Span]
    parts: list[dict[str, Any]]
    usage: Usage
    raw: str = ""
    parsed: str = "none"


@dataclass
class Assistant:
    """A loaded model, its processor and, if it has ears of that kind, a transcriber."""

    model: VLMForConditionalGeneration
    processor: VLMProcessor
    transcriber: Transcriber | None = None
    name: str = ""

    def conversation(self) -> Chat:
        """A new, empty conversation."""
        return Chat(self)

    def chat(self, text: str, **options: Any) -> Reply:
        """Ask one question in a conversation of its own; the options are those of `Chat.ask`."""
        return self.conversation().ask(text, **options)

    def stream(self, text: str, **options: Any) -> Iterator[str]:
        """Like `chat`, but yields the answer piece by piece."""
        return self.conversation().stream(text, **options)


@dataclass
class Chat:
    """One conversation. Media are given with the question they belong to and stay known afterwards."""

    assistant: Assistant
    messages: list[dict[str, Any]] = field(default_factory=list)
    state: DecodeState = field(default_factory=DecodeState)
    reply: Reply | None = None
    video: Medium | None = None
    _stopped: bool = False

    def ask(self, text: str, **options: Any) -> Reply:
        """Ask and wait for the whole answer.

        Args:
            text: The question.
            options: ``video``, ``image``, ``audio`` (path, bytes, frames or loaded object), ``num_frames`` or ``fps``, ``start``, ``end``
                (seconds), ``max_new_tokens``, ``stop`` (strings), ``temperature``, ``top_p``, ``seed``.

        Raises:
            MediaError: A medium cannot be used.
            ConfigError: An option is wrong.
        """
        for _ in self.stream(text, **options):
            pass
        if self.reply is None:
            raise ConfigError("the answer was stopped before it began")
        return self.reply

    def stop(self) -> None:
        """End the answer that is being streamed at the next token; may be called from another thread."""
        self._stopped = True

    def stream(
        self,
        text: str,
        *,
        video: Any = None,
        image: Any = None,
        audio: Any = None,
        num_frames: int | None = None,
        fps: float | None = None,
        start: float | None = None,
        end: float | None = None,
        max_new_tokens: int = 128,
        stop: list[str] | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """Ask; yield the answer so far, growing; `reply` holds the whole `Reply` afterwards."""
        if not text.strip():
            raise ConfigError("the question is empty")
        sampling = Sampling(temperature=temperature, top_p=top_p, repetition_penalty=repetition_penalty, seed=seed)
        self._stopped, self.reply = False, None
        window = {"num_frames": num_frames, "fps": fps, "start": start, "end": end}
        began = time.perf_counter()
        parts = self._media_parts(video, image, audio, window)
        seconds = {"decode": time.perf_counter() - began, "encode": 0.0}
        message = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
        prompt, new_ids = self._read(message)
        mark = time.perf_counter()
        embeds, frames = self._embed(prompt, new_ids)
        seconds["encode"] = time.perf_counter() - mark
        yield from self._write(
            message, prompt, new_ids, embeds, frames, sampling, max_new_tokens, stop or [], seconds, began
        )

    # -- reading ---------------------------------------------------------------------------------------------------------------

    def _media_parts(self, video: Any, image: Any, audio: Any, window: dict[str, Any]) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        ears = self.assistant.processor.ears
        if video is not None:
            if not isinstance(video, Video):
                options = {k: v for k, v in window.items() if v is not None}
                if "fps" not in options:
                    options.setdefault("num_frames", DEFAULT_FRAMES)
                rate = int(ears["rate"]) if ears else None
                video = load_video(
                    video, size=int(self.assistant.processor.pixels["image_size"]), audio_rate=rate, **options
                )
            parts.append({"type": "video", "video": video})
            if video.audio is not None and ears:
                parts.append(self._audio_part(video.audio, video.start, video.end))
        for picture in [] if image is None else image if isinstance(image, list) else [image]:
            parts.append({"type": "image", "image": picture})
        if audio is not None:
            if not ears:
                raise ConfigError(f"the model {self.assistant.name!r} has no ears; ask it about pictures and video")
            if not isinstance(audio, Audio):
                audio = load_audio(audio, rate=int(ears["rate"]), start=window["start"], end=window["end"])
            parts.append(self._audio_part(audio, audio.start, audio.start + audio.duration))
        return parts

    def _audio_part(self, audio: Audio, start: float, end: float) -> dict[str, Any]:
        if self.assistant.transcriber is None:
            return {"type": "audio", "audio": audio}
        shift = audio.start - start
        pieces = self.assistant.transcriber(audio.samples.mean(0))
        moved = [TranscriptPiece(p.start + shift, p.end + shift, p.text) for p in pieces]
        return {"type": "transcript", "pieces": [(p.start, p.end, p.text) for p in moved], "duration": end - start}

    def _read(self, message: dict[str, Any]) -> tuple[Prompt, list[int]]:
        """The new message as a prompt of its own media, and the ids that follow what the cache holds."""
        processor = self.assistant.processor
        stub = [{**m, "content": "x"} for m in self.messages]
        known = self.video.duration if self.video is not None else 0.0
        prompt = processor.prompt([*stub, message], add_generation_prompt=True, known_duration=known)
        video = next((m for m in prompt.media if m.kind == "video"), None)
        if video is not None:
            self.video = video
        if not self.messages:
            return prompt, prompt.ids
        before = processor.prompt(stub, add_generation_prompt=False)
        tail = _after_answer(prompt.ids, before)
        return prompt, tail

    def _embed(self, prompt: Prompt, new_ids: list[int]) -> tuple[torch.Tensor, int]:
        """Embeddings of ``new_ids`` and the number of frames the vision tower saw."""
        model = self.assistant.model
        tensors = self.assistant.processor.tensors(prompt)
        ids = torch.tensor([new_ids], device=model.device)
        media = {k: _to(tensors[k], model) for k in MEDIA_KEYS if k in tensors}
        with torch.inference_mode():
            embeds = model.fuse(ids, **media)
        return embeds, int(tensors["pixel_values"].shape[0]) if "pixel_values" in tensors else 0

    # -- writing ---------------------------------------------------------------------------------------------------------------

    def _write(
        self,
        message: dict[str, Any],
        prompt: Prompt,
        new_ids: list[int],
        embeds: torch.Tensor,
        frames: int,
        sampling: Sampling,
        max_new_tokens: int,
        stop: list[str],
        seconds: dict[str, float],
        began: float,
    ) -> Iterator[str]:
        model, processor = self.assistant.model, self.assistant.processor
        reused = len(self.state.ids)
        self.state.seconds = {}
        answer: list[int] = []
        raw = ""
        ids = stream_ids(
            model,
            self.state,
            embeds,
            new_ids,
            stop_ids=stop_token_ids(model, processor.tokenizer),
            max_new_tokens=max_new_tokens,
            sampling=sampling,
        )
        for token in ids:
            seconds.setdefault("first_token", time.perf_counter() - began)
            answer.append(token)
            circle = repeated_tail(answer)
            if circle:  # a small model that goes round in circles: keep the first round, end the answer
                answer = answer[: -3 * circle]
            raw = processor.decode_reply(answer)
            cut = min((raw.find(s) for s in stop if s in raw), default=-1)
            if cut >= 0:
                raw = raw[:cut].rstrip()
            yield self._readable(raw).text
            if cut >= 0 or circle or self._stopped:
                break
        ids.close()
        self.messages += [message, {"role": "assistant", "content": raw}]
        media_tokens = sum(len(m.spans) for m in prompt.media if m.kind != "audio")
        seconds.setdefault("first_token", time.perf_counter() - began)
        usage = Usage(len(new_ids), reused, media_tokens, len(answer), frames, {**seconds, **self.state.seconds})
        self.reply = self._finish(raw, usage)

    def _readable(self, raw: str) -> Any:
        duration = self.video.duration if self.video is not None else 0.0
        return self.assistant.processor.codec.parse(raw, duration)

    def _finish(self, raw: str, usage: Usage) -> Reply:
        parsed = self._readable(raw)
        shift = self.video.start if self.video is not None else 0.0
        spans = [Span(s.start + shift, s.end + shift) for s in parsed.spans] if self.video is not None else []
        return Reply(parsed.text, spans, [{"type": "text", "text": parsed.text}], usage, raw, parsed.how)


def _after_answer(ids: list[int], before: Prompt) -> list[int]:
    """Ids after the last answer's text in ``before``: the end of that turn, then the new message."""
    last = max(i for i, label in enumerate(before.labels) if label != -100)
    return ids[last:]


def _to(value: Any, model: VLMForConditionalGeneration) -> Any:
    return value.to(model.device) if isinstance(value, torch.Tensor) else value
