"""`Assistant` (a model with its processor) and `Chat` (one conversation): ask about a video, get words and times.

A second question about the same video runs no vision forward and re-reads nothing: `Chat` keeps the language model's cache and only
feeds the ids that are new.
"""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from vlm.encoders.audio import Transcriber
from vlm.errors import ConfigError
from vlm.generate import DecodeState, Sampling, check_length, repeated_tail, stop_token_ids, stream_ids
from vlm.media import Audio, Video, load_audio, load_video
from vlm.model import MEDIA_KEYS, VLMForConditionalGeneration
from vlm.pieces import embed_pieces
from vlm.prepare import DEFAULT_FRAMES, Medium, check_rate
from vlm.processor import Prompt, VLMProcessor
from vlm.time.parse import ParseResult
from vlm.time.span import Span

# The end of a text that the next token may still change: half a character, a number, or half a time of several tokens.
_UNFINISHED = re.compile(r"(?:(?:\s*<(?:d[0-9]|dot)>)+|\s*<[^<>\s]{0,12}|\s*[0-9][0-9.:]*)?\ufffd*$")


@dataclass(frozen=True)
class Usage:
    """Counts and timings of one reply.

    Attributes:
        prompt_tokens: Tokens read for this reply (after reuse of what was read before).
        reused_tokens: Tokens that were in the cache already.
        media_tokens: Placeholders of pictures and video among the prompt tokens; sound is not counted.
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

    def load(self, video: Any, **options: Any) -> Video:
        """A video with its sound as `chat` loads it: give the result to ask several questions about it without decoding it again.

        Args:
            video: What `vlm.media.load_video` takes.
            options: Of that: ``num_frames`` (64 by default), ``fps``, ``start``, ``end``, ``frame_fps``, ...
        """
        ears, size = self.processor.ears, int(self.processor.pixels["image_size"])
        wanted = options if "fps" in options else {"num_frames": DEFAULT_FRAMES, **options}
        return load_video(video, **{"size": size, "audio_rate": int(ears["rate"]) if ears else None, **wanted})

    def chat(self, text: str, **options: Any) -> Reply:
        """Ask one question in a conversation of its own; the options are those of `Chat.ask`."""
        return self.conversation().ask(text, **options)

    def stream(self, text: str, **options: Any) -> Iterator[str]:
        """Like `chat`, but yields the answer piece by piece."""
        return self.conversation().stream(text, **options)


@dataclass
class _Turn:
    """A question as it was read, and the answer as far as it is written.

    Attributes:
        message: The user's message.
        prompt: The message (in a conversation that is read anew: all of them) with its media.
        new_ids: Ids that the model reads for it.
        reused: Number of ids that were in the cache before.
        began: When the question came (`time.perf_counter`).
        seconds: Timings so far.
        frames: Frames that went through the vision tower.
        answer: Ids written.
        raw: The model's own words, cut at a stop string.
    """

    message: dict[str, Any]
    prompt: Prompt
    new_ids: list[int]
    reused: int
    began: float
    seconds: dict[str, float]
    frames: int = 0
    answer: list[int] = field(default_factory=list)
    raw: str = ""


@dataclass
class Chat:
    """One conversation. Media are given with the question they belong to and stay known afterwards.

    Attributes:
        assistant: The model with its processor.
        messages: What was said; a history given here is read with the first question.
        state: What the language model holds of it.
        reply: The last answer.
        video: The video that was asked about last.
        clock: The medium that times refer to: that video, or sound that came after it.
    """

    assistant: Assistant
    messages: list[dict[str, Any]] = field(default_factory=list)
    state: DecodeState = field(default_factory=DecodeState)
    reply: Reply | None = None
    video: Medium | None = None
    clock: Medium | None = None
    _stopped: bool = False
    _writing: Generator[str, None, None] | None = None

    def ask(self, text: str, **options: Any) -> Reply:
        """Ask and wait for the whole answer.

        Args:
            text: The question.
            options: ``video``, ``image``, ``audio`` (path, bytes, frames or loaded object), ``num_frames`` or ``fps``, ``start``, ``end``
                (seconds), ``max_new_tokens``, ``stop`` (strings), ``temperature``, ``top_p``, ``repetition_penalty``, ``seed``.

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
        stop: list[str] | str | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """Ask; yield the answer so far, growing; `reply` holds the whole `Reply` afterwards.

        What is left unread ends there: the words that were shown are the answer. A question that fails leaves the conversation as it was.
        """
        if not text.strip():
            raise ConfigError("the question is empty")
        sampling = Sampling(temperature=temperature, top_p=top_p, repetition_penalty=repetition_penalty, seed=seed)
        check_length(max_new_tokens)
        stops = _stop_strings(stop)
        self._end_earlier_answer()
        self._stopped, self.reply = False, None
        held, pending, video_before, clock_before = len(self.state.ids), self.state.pending, self.video, self.clock
        try:
            window = {"num_frames": num_frames, "fps": fps, "start": start, "end": end}
            began = time.perf_counter()
            parts = self._media_parts(video, image, audio, {k: v for k, v in window.items() if v is not None})
            seconds = {"decode": time.perf_counter() - began, "encode": 0.0}
            question = {"type": "text", "text": text, "literal": True}
            turn = self._read({"role": "user", "content": [*parts, question]}, began, seconds)
            embeds = self._embed(turn)
            self._writing = self._write(turn, embeds, sampling, max_new_tokens, stops)
            yield from self._writing
        except GeneratorExit:
            raise
        except BaseException:
            self.state.rewind(held)
            self.state.pending = pending if self.state.ids else []
            self.video, self.clock = video_before, clock_before
            raise

    def _end_earlier_answer(self) -> None:
        """An answer that nobody read to its end is over when the next question comes."""
        if self._writing is not None:
            if inspect.getgeneratorstate(self._writing) == inspect.GEN_RUNNING:
                raise ConfigError("an answer is being written; wait for it, or call stop() and then wait")
            self._writing.close()
            self._writing = None

    # -- reading ---------------------------------------------------------------------------------------------------------------

    def _media_parts(self, video: Any, image: Any, audio: Any, window: dict[str, Any]) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        ears = self.assistant.processor.ears
        _check_window(video, audio, window)
        if video is not None:
            if not isinstance(video, Video):
                video = self.assistant.load(video, **window)
            parts.append({"type": "video", "video": video})
            if video.audio is not None and ears:
                shift = video.audio.start - video.start
                parts.append(self._audio_part(video.audio, {"offset": shift, "duration": video.end - video.start}))
        for picture in [] if image is None else image if isinstance(image, list) else [image]:
            parts.append({"type": "image", "image": picture})
        if audio is not None:
            if not ears:
                raise ConfigError(f"the model {self.assistant.name!r} has no ears; ask it about pictures and video")
            if not isinstance(audio, Audio):
                audio = load_audio(audio, rate=int(ears["rate"]), start=window.get("start"), end=window.get("end"))
            parts.append(self._audio_part(audio, {}))
        return parts

    def _audio_part(self, audio: Audio, place: dict[str, float]) -> dict[str, Any]:
        """Sound as the model takes it. ``place``: where it lies in a video's window, see `vlm.prepare.prepare_audio`."""
        if self.assistant.transcriber is None:
            return {"type": "audio", "audio": audio, **place}
        check_rate(audio, self.assistant.processor.ears or {})
        shift, duration = place.get("offset", 0.0), place.get("duration", audio.duration)
        pieces = [(p.start + shift, p.end + shift, p.text) for p in self.assistant.transcriber(audio.mono())]
        return {"type": "transcript", "pieces": pieces, "duration": duration, "start": audio.start - shift}

    def _read(self, message: dict[str, Any], began: float, seconds: dict[str, float]) -> _Turn:
        """The new message as a prompt of its own media, and the ids that follow what the cache holds.

        If it holds nothing, the whole conversation is read.
        """
        processor, reused = self.assistant.processor, len(self.state.ids)
        stub = [{**m, "content": "x"} for m in self.messages] if reused else self.messages
        known = self.clock.duration if self.clock is not None else 0.0
        prompt = processor.prompt([*stub, message], add_generation_prompt=True, known_duration=known)
        self.video = next((m for m in reversed(prompt.media) if m.kind == "video"), self.video)
        self.clock = prompt.clock or self.clock
        new_ids = prompt.ids
        if reused:
            before = processor.prompt(stub, add_generation_prompt=False)
            new_ids = self.state.pending + _after_answer(prompt.ids, before)
        return _Turn(message, prompt, new_ids, reused, began, seconds)

    def _embed(self, turn: _Turn) -> Iterator[torch.Tensor]:
        """Embeddings of the turn's new ids, piece by piece; notes the number of frames that the vision tower sees, and the seconds."""
        model, tensors = self.assistant.model, self.assistant.processor.tensors(turn.prompt, lazy=True)
        turn.frames = len(tensors["pixel_values"]) if "pixel_values" in tensors else 0
        ids = torch.tensor([turn.new_ids], device=model.device)
        pieces = embed_pieces(model, ids, **{k: tensors[k] for k in MEDIA_KEYS if k in tensors})
        while True:
            mark = time.perf_counter()
            piece = next(pieces, None)
            turn.seconds["encode"] += time.perf_counter() - mark
            if piece is None:
                return
            yield piece

    # -- writing ---------------------------------------------------------------------------------------------------------------

    def _write(
        self, turn: _Turn, embeds: Iterator[torch.Tensor], sampling: Sampling, max_new_tokens: int, stop: list[str]
    ) -> Generator[str, None, None]:
        model, processor = self.assistant.model, self.assistant.processor
        self.state.seconds = {}
        shown = ""
        ids = stream_ids(
            model,
            self.state,
            embeds,
            turn.new_ids,
            stop_ids=stop_token_ids(model, processor.tokenizer),
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            escape=True,
        )
        try:
            for token in ids:
                turn.seconds.setdefault("first_token", time.perf_counter() - turn.began)
                turn.answer.append(token)
                circle = repeated_tail(turn.answer)
                if circle:  # a small model that goes round in circles: keep the first round, end the answer
                    del turn.answer[-3 * circle :]
                turn.raw = processor.decode_reply(turn.answer)
                cut = min((turn.raw.find(s) for s in stop if s in turn.raw), default=-1)
                if cut >= 0:
                    turn.raw = turn.raw[:cut].rstrip()
                shown = self._readable(_UNFINISHED.sub("", turn.raw)).text
                yield shown
                if cut >= 0 or circle or self._stopped:
                    break
        except GeneratorExit:  # nobody reads on: the answer ends here
            self._finish(turn, ids)
            raise
        reply = self._finish(turn, ids)
        if shown != reply.text:
            yield reply.text

    def _readable(self, raw: str) -> ParseResult:
        duration, start = (self.clock.duration, self.clock.start) if self.clock is not None else (0.0, 0.0)
        return self.assistant.processor.codec.parse(raw, duration, offset=start)

    def _finish(self, turn: _Turn, ids: Generator[int, None, None]) -> Reply:
        """Write the turn down: in the cache what the answer says, in `messages`, and as `reply`."""
        ids.close()
        self._keep_answer(turn)
        self.messages += [turn.message, {"role": "assistant", "content": turn.raw}]
        turn.seconds.setdefault("first_token", time.perf_counter() - turn.began)
        media_tokens = sum(len(m.spans) for m in turn.prompt.media if m.kind != "audio")
        seconds = {**turn.seconds, **self.state.seconds}
        if "prefill" in seconds:
            seconds["prefill"] -= seconds["encode"]  # the eyes looked while the prompt was read
        usage = Usage(len(turn.new_ids), turn.reused, media_tokens, len(turn.answer), turn.frames, seconds)
        parsed = self._readable(turn.raw)
        spans = parsed.spans if self.clock is not None else []
        self.reply = Reply(parsed.text, spans, [{"type": "text", "text": parsed.text}], usage, turn.raw, parsed.how)
        return self.reply

    def _keep_answer(self, turn: _Turn) -> None:
        """Cut the cache to the ids whose words are in the answer; words it lacks are read with the next question."""
        processor, kept = self.assistant.processor, len(turn.answer)
        while kept and not turn.raw.startswith(processor.decode_reply(turn.answer[:kept])):
            kept -= 1
        rest = turn.raw[len(processor.decode_reply(turn.answer[:kept])) :]
        first = turn.reused + len(turn.new_ids)
        held = min(kept, len(self.state.ids) - first)
        self.state.rewind(first + held)
        if self.state.ids:
            self.state.pending = turn.answer[held:kept] + processor.text_ids(rest, marks=False)


def _after_answer(ids: list[int], before: Prompt) -> list[int]:
    """Ids after the last answer's text in ``before``: the end of that turn, then the new message."""
    last = max(i for i, label in enumerate(before.labels) if label != -100)
    return ids[last:]


def _stop_strings(stop: list[str] | str | None) -> list[str]:
    strings = [stop] if isinstance(stop, str) else list(stop or [])
    if not all(isinstance(s, str) and s for s in strings):
        raise ConfigError(f"stop={stop!r} must be strings of at least one character")
    return strings


def _check_window(video: Any, audio: Any, window: dict[str, Any]) -> None:
    """Refuse options that say what to read of a file when the medium is loaded already."""
    used = set(window) if video is not None and not isinstance(video, Video) else set()
    if audio is not None and not isinstance(audio, Audio):
        used |= {"start", "end"}
    ignored = ", ".join(f"{k}={v}" for k, v in window.items() if k not in used)
    if ignored and (isinstance(video, Video) or isinstance(audio, Audio)):
        raise ConfigError(f"{ignored}: this medium is loaded already; give that to vlm.media.load_video or load_audio")
