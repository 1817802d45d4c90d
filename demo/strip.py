"""HTML of what surrounds the chat: the player, the strip of frames with the answer's span, the line of counts.

Every string that came from outside (file names, answers, notes) goes through `escape`. Nothing here carries a script:
the page's own (`demo.page.SCRIPT`) looks for the ``data-`` attributes.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from vlm.chat import Usage
from vlm.media import Video
from vlm.prepare import frame_edges
from vlm.report import clock
from vlm.time.span import Span

STRIP_FRAMES = 12
MAX_CHIPS = 6
THUMB_HEIGHT = 108  # pixels, about twice what is shown
_TEMPLATE_CHARACTERS = str.maketrans({"$": "&#36;", "{": "&#123;", "}": "&#125;", "`": "&#96;"})

EMPTY_PLAYER = '<div class="vlm-empty">Attach a video, a picture or a sound,<br>or pick an example.</div>'
EMPTY_STRIP = '<div class="vlm-empty vlm-low">The frames that the model looks at appear here, with their times.</div>'


def escape(text: str) -> str:
    """``text`` as HTML text or attribute value, inert in Gradio's templates too."""
    return html.escape(text, quote=True).translate(_TEMPLATE_CHARACTERS)


def player_html(path: Path, kind: str) -> str:
    """The clip, picture or sound itself, as the browser shows it.

    Args:
        path: A file that Gradio serves.
        kind: ``video``, ``image`` or ``audio``.
    """
    source, name = f"gradio_api/file={quote(str(path))}", escape(path.name)
    if kind == "image":
        return f'<figure class="vlm-player"><img src="{source}" alt="{name}"></figure>'
    inside = "Your browser cannot play this file; the model can still read it."
    extra = ' playsinline muted preload="auto"' if kind == "video" else ' preload="metadata"'
    return (
        f'<figure class="vlm-player vlm-{kind}"><{kind} src="{source}" title="{name}" controls{extra}></{kind}>'
        f'<p class="vlm-unplayable">{inside}</p></figure>'
    )


def video_edges(video: Video) -> np.ndarray:
    """``[T+1]`` seconds: sampled frame i stands for ``edges[i]..edges[i+1]``."""
    return video.start + frame_edges(video.timestamps - video.start, video.end - video.start)


def choose_frames(edges: np.ndarray, spans: Sequence[Span], count: int = STRIP_FRAMES) -> list[int]:
    """Which of the sampled frames to show: evenly spread, but every span has at least one of its own.

    Args:
        edges: ``[T+1]`` seconds.
        spans: The answer's, seconds.
        count: At most so many.
    """
    total = len(edges) - 1
    picks = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))
    for span in spans:
        inside = [i for i in range(total) if in_span(edges[i], edges[i + 1], [span])]
        if inside and not set(inside) & set(picks.tolist()):
            middle = inside[len(inside) // 2]
            picks[np.abs(picks - middle).argmin()] = middle
    return sorted(set(picks.tolist()))


def in_span(begin: float, end: float, spans: Sequence[Span]) -> bool:
    """True if ``begin..end`` shares time with one of ``spans``; a span without length counts where it lies."""
    return any((s.start < end and s.end > begin) or begin <= s.start == s.end < end for s in spans)


def strip_html(video: Video, spans: Sequence[Span] = (), *, footer: str = "") -> str:
    """A time line with the spans marked, the sampled frames under it, and a footer.

    Args:
        video: What the model saw.
        spans: The answer's, seconds.
        footer: HTML to put last, e.g. of `usage_html`.
    """
    edges = video_edges(video)
    frames = []
    for index in choose_frames(edges, spans):
        when = float(video.timestamps[index])
        marked = " vlm-marked" if in_span(edges[index], edges[index + 1], spans) else ""
        frames.append(
            f'<button type="button" class="vlm-frame{marked}" data-seek="{when:.3f}" title="Go to {clock(when)}">'
            f'<img src="{_thumbnail(video, index)}" alt="frame at {clock(when)}"><span>{clock(when)}</span></button>'
        )
    row = f'<div class="vlm-frames">{"".join(frames)}</div>'
    return f'<section class="vlm-strip">{_timeline(video, spans)}{row}{footer}</section>'


def _timeline(video: Video, spans: Sequence[Span]) -> str:
    length = max(video.duration, video.end, 1e-6)

    def place(start: float, end: float) -> str:
        left = 100 * min(max(start / length, 0.0), 1.0)
        width = 100 * min(max(end / length, 0.0), 1.0) - left
        return f"left:{left:.3f}%;width:{max(width, 0.0):.3f}%"

    marks = "".join(
        f'<button type="button" class="vlm-mark" data-seek="{s.start:.3f}" title="{_range(s)}"'
        f' style="{place(s.start, s.end)}"></button>'
        for s in spans
    )
    window = f'<i class="vlm-window" style="{place(video.start, video.end)}"></i>'
    chips = "".join(
        f'<button type="button" class="vlm-chip" data-seek="{s.start:.3f}">{_range(s)}</button>'
        for s in spans[:MAX_CHIPS]
    )
    chips += f"<span>and {len(spans) - MAX_CHIPS} more</span>" if len(spans) > MAX_CHIPS else ""
    label = f"<b>Answer</b>{chips}" if spans else "<b>Frames</b>"
    return (
        f'<header class="vlm-times">{label}<em>{clock(length)}</em></header>'
        f'<div class="vlm-bar" data-length="{length:.3f}">{window}{marks}<i class="vlm-playhead"></i></div>'
    )


def _range(span: Span) -> str:
    return clock(span.start) if span.end - span.start < 0.05 else f"{clock(span.start)} – {clock(span.end)}"


def _thumbnail(video: Video, index: int) -> str:
    """One frame as a data URI, in the shape the clip has on screen (the model sees it squeezed into a square)."""
    from PIL import Image

    shape = video.info.width / video.info.height
    width = max(1, round(THUMB_HEIGHT * min(max(shape, 0.3), 3.0)))
    picture = Image.fromarray(video.frames[index]).resize((width, THUMB_HEIGHT))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def usage_html(usage: Usage, *, read_seconds: float = 0.0, notes: Sequence[str] = ()) -> str:
    """One line of counts and timings, and what a reader should know about the file.

    Args:
        usage: Of the reply.
        read_seconds: Time that reading the file took before the model was asked.
        notes: Plain sentences.
    """
    seconds = usage.seconds
    first = seconds.get("first_token", 0.0) + read_seconds
    facts = [
        (f"{usage.prompt_tokens:,}", "tokens read"),
        (f"{usage.media_tokens:,}", f"of them visual, from {usage.frames} frames") if usage.frames else None,
        (f"{usage.reused_tokens:,}", "reused") if usage.reused_tokens else None,
        (f"{usage.completion_tokens:,}", "written"),
        (f"{read_seconds + seconds.get('decode', 0.0):.2f} s", "to decode") if usage.frames else None,
        (f"{seconds.get('encode', 0.0):.2f} s", "to encode") if usage.frames else None,
        (f"{first:.2f} s", "to the first word"),
    ]
    if seconds.get("generate", 0.0) > 0 and usage.completion_tokens > 1:
        facts.append((f"{usage.completion_tokens / seconds['generate']:.0f}", "tokens/s"))
    items = "".join(f"<li><b>{number}</b> {what}</li>" for number, what in (f for f in facts if f is not None))
    remarks = "".join(f'<p class="vlm-note">{escape(note)}</p>' for note in notes)
    return f'<ul class="vlm-usage">{items}</ul>{remarks}'
