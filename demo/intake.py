"""What comes in from a browser, checked: control values -> `Settings`, uploaded files -> media read under limits."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.errors import ConfigError, MediaError, MediaWarning
from vlm.media import MediaLimits, Video, load_audio, load_image, load_video

if TYPE_CHECKING:
    from vlm.processor import VLMProcessor

MAX_UPLOAD_BYTES = 512 << 20
MAX_FRAMES = 256
MAX_FPS = 8.0
MAX_SECONDS = 4 * 3600.0
MAX_NEW_TOKENS = 512
MAX_TEMPERATURE = 1.5
MAX_IMAGES = 8
DECODE_TIMEOUT = 60.0  # seconds of wall clock for one upload

# What a visitor can do about a limit, whose name in `MediaLimits` says nothing to them.
ADVICE = {
    "max_frames": "choose fewer frames, or a shorter part of the clip with From and To",
    "max_seconds": "give a shorter one",
    "max_pixels": "give a smaller one",
    "max_bytes": "give a smaller one",
}

# By our own table: what the system's knows of media differs from one machine to the next.
SUFFIXES = {
    "video": ".3g2 .3gp .asf .avi .flv .gif .ivf .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .nut .ogv .qt .ts .vob .webm .wmv",
    "image": ".avif .bmp .jpeg .jpg .png .ppm .tif .tiff .webp",
    "audio": ".aac .ac3 .aif .aiff .amr .ape .au .caf .eac3 .flac .m4a .mp3 .oga .ogg .opus .tta .w64 .wav .wma .wv",
}
KINDS = {suffix: kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes.split()}

LIMITS = MediaLimits(
    max_bytes=MAX_UPLOAD_BYTES,
    max_pixels=40_000_000,
    max_seconds=MAX_SECONDS,
    max_frames=MAX_FRAMES,
    max_decoded_bytes=1 << 30,
    max_wall_seconds=DECODE_TIMEOUT,
)


@dataclass(frozen=True)
class Look:
    """Which part of a clip is looked at and how closely (`vlm.media.load_video`)."""

    num_frames: int | None = None
    fps: float | None = None
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Settings:
    """The controls of the page, checked."""

    look: Look
    max_new_tokens: int
    temperature: float


def check_settings(
    sampling: str, frames: Any, fps: Any, start: Any, end: Any, max_new_tokens: Any, temperature: Any
) -> Settings:
    """`Settings` from what a browser sent; nothing in it is trusted.

    Args:
        sampling: ``frames`` (so many in total) or ``fps`` (so many a second).
        frames: Frames in total.
        fps: Frames per second.
        start: Seconds (``75``, ``1:15``), empty for the beginning.
        end: Likewise, empty for the end.
        max_new_tokens: Longest answer.
        temperature: 0 is greedy.

    Raises:
        ConfigError: A value is no number or out of its range.
    """
    if sampling not in ("frames", "fps"):
        raise ConfigError(f"sampling is 'frames' or 'fps', not {sampling!r}")
    first, last = _seconds("From", start), _seconds("To", end)
    if last is not None and last <= (first or 0.0):
        raise ConfigError(f"the window ends at {last:g} s, before it begins ({first or 0.0:g} s); swap From and To")
    look = Look(
        num_frames=int(_number("Frames", frames, 1, MAX_FRAMES)) if sampling == "frames" else None,
        fps=_number("Frames per second", fps, 0.01, MAX_FPS) if sampling == "fps" else None,
        start=first,
        end=last,
    )
    tokens = int(_number("Longest answer", max_new_tokens, 1, MAX_NEW_TOKENS))
    return Settings(look, tokens, _number("Temperature", temperature, 0.0, MAX_TEMPERATURE))


def _seconds(name: str, text: Any) -> float | None:
    """``""`` -> None, ``"12.5"`` -> 12.5, ``"1:02:03.5"`` -> 3723.5."""
    text = "" if text is None else str(text).strip()
    if not text:
        return None
    if not re.fullmatch(r"(\d{1,4}:){0,2}\d{1,6}(\.\d{1,6})?", text, re.ASCII):
        raise ConfigError(f"{name} must be seconds like 12.5 or a time like 1:15, not {text[:20]!r}")
    total = 0.0
    for part in text.split(":"):
        total = 60 * total + float(part)
    return _number(name, total, 0.0, MAX_SECONDS)


def _number(name: str, value: Any, low: float, high: float) -> float:
    good = (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high
    )
    if not good:
        raise ConfigError(f"{name} must be a number between {low:g} and {high:g}, not {value!r}")
    return float(value)


def kind_of(path: Path) -> str:
    """``video``, ``image`` or ``audio``, from the file's name; a GIF counts as video.

    Raises:
        MediaError: It is none of them.
    """
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise MediaError(path.name, "is not a video, a picture or a sound, judging by its name")
    return kind


@dataclass(frozen=True)
class Media:
    """What the files of one question hold, ready for `vlm.chat.Chat.stream`.

    Attributes:
        options: ``video``, ``image``, ``audio``.
        video: The clip, for the strip of frames.
        notes: What a reader should know, e.g. that a file ends early.
    """

    options: dict[str, Any]
    video: Video | None
    notes: list[str]


def read_files(files: Sequence[Path], look: Look, processor: VLMProcessor) -> Media:
    """Decode the files of one question, each in a child process, at the size that the model looks at.

    Raises:
        MediaError: A file cannot be used or is too large; ``source`` is its bare name.
        ConfigError: Too many files of one kind.
    """
    kinds = [kind_of(path) for path in files]
    for kind, most in (("video", 1), ("audio", 1), ("image", MAX_IMAGES)):
        if kinds.count(kind) > most:
            raise ConfigError(f"These are {kinds.count(kind)} files of one kind; give at most {most} {kind} at a time.")
    options: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MediaWarning)
        for path, kind in zip(files, kinds, strict=True):
            value = _read(path, kind, look, processor)
            options[kind] = [*options.get("image", []), value] if kind == "image" else value
    notes = [str(w.message) for w in caught if issubclass(w.category, MediaWarning)]
    return Media(options, options.get("video"), [_without_folder(n, files) for n in notes])


def _read(path: Path, kind: str, look: Look, processor: VLMProcessor) -> Any:
    size = int(processor.pixels["image_size"])
    try:
        if kind == "image":
            return load_image(path, size=size, limits=LIMITS, timeout=DECODE_TIMEOUT)
        rate = int(processor.ears["rate"]) if processor.ears else None
        if kind == "audio":
            if rate is None:
                raise MediaError(path.name, "cannot be heard: this model has eyes only")
            return load_audio(path, rate=rate, start=look.start, end=look.end, limits=LIMITS, timeout=DECODE_TIMEOUT)
        return load_video(
            path,
            num_frames=look.num_frames,
            fps=look.fps,
            start=look.start,
            end=look.end,
            size=size,
            audio_rate=rate,
            limits=LIMITS,
            timeout=DECODE_TIMEOUT,
        )
    except MediaError as error:
        raise type(error)(path.name, _for_visitors(_without_folder(error.cause, [path]))) from error


def _for_visitors(cause: str) -> str:
    """Advice for who runs the code -> advice for who looks at the page."""

    def advice(match: re.Match[str]) -> str:
        return ADVICE.get(match[1], "give a shorter or smaller one")

    return re.sub(r"raise MediaLimits\.(\w+) to allow it", advice, cause)


def _without_folder(text: str, files: Sequence[Path]) -> str:
    """Nobody needs to know where the server keeps its uploads."""
    for path in files:
        text = text.replace(str(path), path.name)
    return text
