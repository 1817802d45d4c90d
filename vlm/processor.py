"""`VLMProcessor`: chat messages -> tensors, and generated ids -> a `Reply`'s text and spans.

One rule keeps prompts safe and prefixes stable: the chat template is rendered with private marks in place of every content, split at
those marks, and each piece is tokenised alone. User text is tokenised with control tokens switched off, so it can forge neither media
placeholders nor turn markers; the ids of a conversation are always a prefix of the ids of the longer conversation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from vlm.config import TIME_LAYOUT, VLMConfig
from vlm.errors import ConfigError
from vlm.messages import contents_of, conversations_of, needed
from vlm.prepare import STATES_PER_SECOND, VIDEO_OPTIONS, Medium, Pixels, prepare_audio, prepare_images, prepare_video
from vlm.time.codec import TimeCodec, make_codec
from vlm.time.slowfast import Pooler, pooler_of

MEDIA_TOKENS = ("<image>", "<video>", "<audio>")
_AUDIO_TIMES = 50  # with interleaved times, sound has one a second, or at most about this many
_MARK = re.compile("\ue000(\\d+)\ue001")
_FALLBACK_TEMPLATE = (  # an answer ends with the token that generation stops at
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@dataclass
class Prompt:
    """One conversation as ids, with what the media need.

    Attributes:
        ids: Token ids, media placeholders expanded.
        labels: Same length; -100 except on assistant turns (their text and the token that ends the turn).
        media: Prepared media in reading order.
        spans: ``[N, 2]`` seconds covered by each visual token, in order.
        duration: Seconds of the first video, or of the sound if there is none; times in the text refer to it.
        clock: The medium that times of an answer refer to: the first video, or else sound, of the last message that has one.
    """

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    media: list[Medium] = field(default_factory=list)
    duration: float = 0.0
    clock: Medium | None = None

    @property
    def spans(self) -> np.ndarray:
        parts = [m.spans for m in self.media if m.kind != "audio"]
        return np.concatenate(parts) if parts else np.zeros((0, 2))


def _codec(time: dict[str, Any]) -> TimeCodec:
    """The codec that `VLMConfig.time` describes."""
    return make_codec(time["codec"], **{k: v for k, v in time.items() if k not in TIME_LAYOUT})


class VLMProcessor(ProcessorMixin):
    """Messages in, tensors out; generated ids in, text and spans out.

    Args:
        tokenizer: A fast tokenizer that already has the media and time tokens (see `for_config`).
        pixels: ``image_size``, ``image_mean``, ``image_std``.
        layout: ``token_grid`` (rows, columns of tokens per frame), ``pooling`` and ``time`` as in `VLMConfig`.
        ears: Options of the audio input (``mode``, ``rate``, ...) or None.
        chat_template: Overrides the tokenizer's template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pixels: dict[str, Any] | None = None,
        layout: dict[str, Any] | None = None,
        ears: dict[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(tokenizer, chat_template=chat_template)
        self.pixels = dict(pixels or {})
        self.layout = dict(layout or {})
        self.ears = dict(ears) if ears else None
        missing = [k for k in ("token_grid", "pooling", "time") if k not in self.layout]
        if missing:
            raise ConfigError(
                f"processor layout lacks {missing}; build it with VLMProcessor.for_config(config, tokenizer)"
            )

    @classmethod
    def for_config(
        cls,
        config: VLMConfig,
        tokenizer: PreTrainedTokenizerBase,
        token_grid: tuple[int, int],
        *,
        chat_template: str | None = None,
    ) -> VLMProcessor:
        """Processor that matches a model: adds missing media and time tokens to ``tokenizer`` and writes their ids into ``config``.

        Args:
            token_grid: `VLMForConditionalGeneration.token_grid`.
        """
        codec, vision, ears = _codec(config.time), config.vision_config, config.audio_config
        add_tokens(tokenizer, codec)
        ids = tokenizer.convert_tokens_to_ids(list(MEDIA_TOKENS))
        config.image_token_id, config.video_token_id, config.audio_token_id = ids
        config.time_token_ids = tokenizer.convert_tokens_to_ids(codec.tokens()) if codec.ordered else None
        return cls(
            tokenizer,
            pixels={"image_size": vision.image_size, "image_mean": vision.image_mean, "image_std": vision.image_std},
            layout={"token_grid": list(token_grid), "pooling": dict(config.pooling), "time": dict(config.time)},
            ears=None
            if ears is None
            else {k: getattr(ears, k) for k in ("mode", "rate", "stride", "window", "num_mel_bins")},
            chat_template=chat_template,
        )

    # -- what follows from the options -----------------------------------------------------------------------------------------

    @property
    def codec(self) -> TimeCodec:
        return _codec(self.layout["time"])

    @property
    def pooler(self) -> Pooler:
        return pooler_of(self.layout["pooling"])

    @property
    def template(self) -> str:
        return self.chat_template or self.tokenizer.chat_template or _FALLBACK_TEMPLATE

    def token_id(self, token: str) -> int:
        """Id of a media token.

        Raises:
            ConfigError: The tokenizer does not have it.
        """
        token_id = self.tokenizer.convert_tokens_to_ids(token)
        if token_id is None or token_id == self.tokenizer.unk_token_id:
            raise ConfigError(f"the tokenizer has no {token!r} token; build the processor with VLMProcessor.for_config")
        return token_id

    # -- messages -> ids -------------------------------------------------------------------------------------------------------

    def prompt(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        known_duration: float = 0.0,
        planned: bool = False,
        **video_options: Any,
    ) -> Prompt:
        """Ids, labels and prepared media of one conversation.

        Args:
            messages: OpenAI/HF-style messages (see `data_recipes.sample`).
            known_duration: Seconds of the medium that times refer to when the messages themselves hold none.
            planned: Decode frames of files when they are looked at (`vlm.media.plan_video`).
            video_options: ``num_frames``, ``fps``, ``start``, ``end``, ... of `vlm.media.load_video`, for parts given as paths.

        Raises:
            ConfigError: A message is malformed or a part lacks something; MediaError: a medium cannot be used.
        """
        contents = contents_of(messages)
        media = [[self._prepare(p, video_options, planned) for p in parts] for parts in contents]
        flat = [m for group in media for m in group if m is not None]
        first = _clock(flat)
        duration = first.duration if first is not None else known_duration
        clock = next((c for group in reversed(media) if (c := _clock(group)) is not None), None)
        out = Prompt(media=[m for m in flat if m.kind != "transcript"], duration=duration, clock=clock)
        rendered = self.render(messages, add_generation_prompt=add_generation_prompt)
        pieces = _MARK.split(rendered)
        for i, piece in enumerate(pieces):
            if i % 2 == 0:
                self._append_literal(
                    out, piece, closes_answer=i > 0 and messages[int(pieces[i - 1])]["role"] == "assistant"
                )
            else:
                index = int(piece)
                self._append_content(out, messages[index]["role"], contents[index], media[index], duration)
        return out

    def render(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        """The chat template with a private mark in place of each message's content."""
        marked = [{"role": m["role"], "content": f"\ue000{i}\ue001"} for i, m in enumerate(messages)]
        return self.tokenizer.apply_chat_template(
            marked, chat_template=self.template, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def _append_literal(self, out: Prompt, text: str, *, closes_answer: bool) -> None:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        if closes_answer and not ids and self.tokenizer.eos_token_id is not None:
            ids = [self.tokenizer.eos_token_id]
        out.ids += ids
        out.labels += [ids[0]] + [-100] * (len(ids) - 1) if closes_answer and ids else [-100] * len(ids)

    def _append_content(
        self, out: Prompt, role: str, parts: list[dict[str, Any]], media: list[Medium | None], duration: float
    ) -> None:
        for part, medium in zip(parts, media, strict=True):
            ids = medium.ids if medium else self.text_ids(part["text"], duration, marks=not part.get("literal"))
            out.ids += ids
            out.labels += ids if role == "assistant" else [-100] * len(ids)

    def text_ids(self, text: str, duration: float = 0.0, *, marks: bool = True) -> list[int]:
        """Ids of untrusted text: control tokens in it stay plain text; with ``marks``, ``{t:12.3}`` becomes the codec's words."""
        if marks:
            text = self.codec.write(text, duration)
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []

    def _time_ids(self, seconds: float, duration: float) -> list[int]:
        return (
            self.text_ids(f"{{t:{max(0.0, seconds):.3f}}}", duration) if self.layout["time"].get("interleave") else []
        )

    def _prepare(self, part: dict[str, Any], video_options: dict[str, Any], planned: bool) -> Medium | None:
        kind = part["type"]
        if kind == "text":
            return None
        if kind == "video":
            medium = prepare_video(part, self.pixels, self.layout["pooling"], video_options, planned=planned)
        elif kind == "image":
            medium = prepare_images(part, self.pixels)
        elif kind == "audio":
            return self._prepare_audio(part)
        elif kind == "transcript":
            return self._prepare_transcript(part)
        else:
            raise ConfigError(f"content part type {kind!r} is not one of text, image, video, audio, transcript")
        self._lay_out(medium)
        return medium

    def _lay_out(self, medium: Medium) -> None:
        """Fill ``medium.ids`` and ``medium.spans``: placeholders in groups, with the time before each group if configured."""
        grid = tuple(self.layout["token_grid"])
        if medium.kind == "image":
            count = grid[0] * grid[1]
            medium.ids = [self.token_id("<image>")] * count
            medium.spans = np.zeros((count, 2))
            return
        pooler, video = self.pooler, self.token_id("<video>")
        medium.spans = pooler.spans(medium.edges, grid, medium.segments)
        ids: list[int] = []
        first = 0
        for count in pooler.groups(medium.num_frames, grid, medium.segments):
            ids += self._time_ids(float(medium.spans[first, 0]), medium.duration) + [video] * count
            first += count
        if not pooler.closing:
            ids += self._time_ids(medium.duration, medium.duration)
        medium.ids = ids

    def _prepare_audio(self, part: dict[str, Any]) -> Medium:
        if not self.ears or self.ears["mode"] != "features":
            raise ConfigError(
                "this model has no audio encoder for 'audio' parts; Chat turns sound into a transcript part instead"
            )
        medium = prepare_audio(part, self.ears)
        edges = medium.edges
        per_second = STATES_PER_SECOND / int(self.ears["stride"])
        group = max(1, round(per_second * max(1.0, float(edges[-1] - edges[0]) / _AUDIO_TIMES)))
        for first in range(0, medium.num_frames, group):
            count = min(group, medium.num_frames - first)
            medium.ids += self._time_ids(float(edges[first]), medium.duration) + [self.token_id("<audio>")] * count
        medium.ids += self._time_ids(float(edges[-1]), medium.duration)
        return medium

    def _prepare_transcript(self, part: dict[str, Any]) -> Medium:
        """What was heard, as text with times: ``{"pieces": [(start, end, text), ...], "duration": seconds}``.

        Times count from ``start`` (seconds of the file, 0 by default)."""
        pieces, duration = needed(part, "pieces", "duration")
        duration = float(duration)
        ids = self.text_ids("\nHeard: ")
        for start, end, text in pieces:
            ids += self._time_ids(start, duration) + self.text_ids(f"{text}") + self._time_ids(end, duration)
        if not pieces:
            ids += self.text_ids("nothing")
        ids += self.text_ids("\n")
        return Medium(kind="transcript", ids=ids, duration=duration, start=float(part.get("start", 0.0)))

    # -- ids -> tensors --------------------------------------------------------------------------------------------------------

    def __call__(
        self, messages: Any = None, *, add_generation_prompt: bool = True, **video_options: Any
    ) -> BatchFeature:
        """Batch for `generate`: one conversation or a list of them, padded on the left.

        Returns:
            BatchFeature with ``input_ids``, ``attention_mask`` ``[B, L]`` and the media tensors of `VLMForConditionalGeneration.forward`.
        """
        video_options.pop("return_tensors", None)
        batch, _ = conversations_of(messages)
        prompts = [self.prompt(m, add_generation_prompt=add_generation_prompt, **video_options) for m in batch]
        out = self.collate([self.tensors(p) for p in prompts], padding_side="left")
        out.pop("labels")
        return BatchFeature(out)

    def apply_chat_template(self, conversation: Any, *args: Any, tokenize: bool = False, **kwargs: Any) -> Any:
        """transformers' entry point: text when ``tokenize=False`` (a list for a list of conversations), else the same batch as
        calling the processor; options of `load_video` go along."""
        add = bool(kwargs.get("add_generation_prompt", False))
        if tokenize:
            options = {k: v for k, v in kwargs.items() if k in VIDEO_OPTIONS} | (kwargs.get("processor_kwargs") or {})
            return self(conversation, add_generation_prompt=add, **options)
        batch, many = conversations_of(conversation)
        rendered = [self._as_text(messages, add_generation_prompt=add) for messages in batch]
        return rendered if many else rendered[0]

    def _as_text(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        texts = ["".join(p.get("text", f"<{p['type']}>") for p in parts) for parts in contents_of(messages)]
        rendered = self.render(messages, add_generation_prompt=add_generation_prompt)
        return _MARK.sub(lambda m: texts[int(m[1])], rendered)

    def training_example(
        self, messages: list[dict[str, Any]], *, lazy: bool = False, **video_options: Any
    ) -> dict[str, Any]:
        """Tensors of one conversation with labels on assistant turns only (text and the token that ends each); see `tensors`."""
        return self.tensors(
            self.prompt(messages, add_generation_prompt=False, planned=lazy, **video_options), lazy=lazy
        )

    @staticmethod
    def tensors(prompt: Prompt, *, lazy: bool = False) -> dict[str, Any]:
        """`Prompt` -> unpadded tensors; `collate` joins several. With ``lazy`` pixels are made (decoded, too, if planned) when looked at."""
        out: dict[str, Any] = {"input_ids": torch.tensor(prompt.ids), "labels": torch.tensor(prompt.labels)}
        visual = [m for m in prompt.media if m.kind != "audio"]
        if pixels := [m.pixel_values for m in visual if m.pixel_values is not None]:
            out["pixel_values"] = Pixels.joined(pixels) if lazy else Pixels.joined(pixels)[:]
        if features := [m.vision_features for m in visual if m.vision_features is not None]:
            out["vision_features"] = torch.cat(features)
        if visual:
            if "pixel_values" in out and "vision_features" in out:
                raise ConfigError("one conversation mixes raw media and precomputed features; use one of them")
            out["frames_per_medium"] = torch.tensor([m.num_frames for m in visual])
            out["is_video"] = torch.tensor([m.kind == "video" for m in visual])
            out["segments"] = [m.segments for m in visual]
        heard = [m for m in prompt.media if m.kind == "audio"]
        if heard:
            out["mel"] = torch.cat([m.mel for m in heard if m.mel is not None])
            out["audio_lengths"] = torch.tensor([states for m in heard for states in m.windows])
        return out

    def collate(self, examples: list[dict[str, Any]], *, padding_side: str = "right") -> dict[str, Any]:
        """Pad the text and join the media of several examples into one batch."""
        longest = max(len(e["input_ids"]) for e in examples)
        pad = (
            self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id or 0
        )

        def padded(key: str, value: int) -> torch.Tensor:
            rows = [torch.full((longest,), value) for _ in examples]
            for row, example in zip(rows, examples, strict=True):
                tokens = example[key]
                where = slice(longest - len(tokens), None) if padding_side == "left" else slice(0, len(tokens))
                row[where] = tokens
            return torch.stack(rows)

        examples = [{**e, "mask": torch.ones_like(e["input_ids"])} for e in examples]
        out: dict[str, Any] = {"input_ids": padded("input_ids", pad), "attention_mask": padded("mask", 0)}
        out["labels"] = padded("labels", -100)
        for key in ("pixel_values", "vision_features", "frames_per_medium", "is_video", "mel", "audio_lengths"):
            values = [e[key] for e in examples if key in e]
            if values:
                out[key] = Pixels.joined(values) if isinstance(values[0], Pixels) else torch.cat(values)
        if "frames_per_medium" in out:
            out["segments"] = [s for e in examples for s in e.get("segments", [])]
        return out

    # -- ids -> words ----------------------------------------------------------------------------------------------------------

    def decode_reply(self, ids: list[int] | torch.Tensor) -> str:
        """Generated ids as text, end-of-turn tokens dropped, time tokens kept."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def _clock(media: Sequence[Medium | None]) -> Medium | None:
    """The medium that times refer to: the first video, or else the first sound."""
    timed = [m for m in media if m is not None and m.duration > 0]
    return next((m for m in timed if m.kind == "video"), next(iter(timed), None))


def add_tokens(tokenizer: PreTrainedTokenizerBase, codec: TimeCodec) -> int:
    """Add missing media tokens (special) and time tokens (ordinary, so they survive decoding); returns how many were new."""
    known = tokenizer.get_vocab()
    special = [t for t in MEDIA_TOKENS if t not in known]
    added = tokenizer.add_tokens(special, special_tokens=True) if special else 0
    times = [t for t in codec.tokens() if t not in known]
    return added + (tokenizer.add_tokens(times) if times else 0)


AutoProcessor.register(VLMConfig, VLMProcessor)
