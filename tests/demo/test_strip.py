"""The strip of frames and the time line: which frames are shown, what is marked, and that no text becomes markup."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from demo.strip import (
    MAX_CHIPS,
    STRIP_FRAMES,
    choose_frames,
    escape,
    in_span,
    player_html,
    strip_html,
    usage_html,
    video_edges,
)
from vlm.chat import Usage
from vlm.media import Video, VideoInfo
from vlm.time.span import Span


def video(count: int = 8, *, start: float = 0.0, end: float = 8.0, width: int = 160, height: int = 90) -> Video:
    """``count`` evenly spread frames, the window ``start..end`` of a 10-second clip."""
    step = (end - start) / count
    times = start + step * (np.arange(count) + 0.5)
    frames = np.zeros((count, 32, 32, 3), np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None] * 20
    info = VideoInfo("x.mp4", width, height, 10.0, 0.0, 25.0, 250, "h264", 0, False, "pyav")
    return Video(frames, times, 10.0, "x.mp4", None, info, start=start, end=end)


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [a for _, a in self.tags if name in (a.get("class") or "").split()]


def test_frames_inside_the_span_are_marked_and_know_their_time() -> None:
    page = Elements(strip_html(video(), [Span(2.2, 4.9)]))
    assert [f["data-seek"] for f in page.of_class("vlm-frame")] == [f"{t:.3f}" for t in np.arange(8) + 0.5]
    assert [f["data-seek"] for f in page.of_class("vlm-marked")] == ["2.500", "3.500", "4.500"]
    (mark,) = page.of_class("vlm-mark")
    assert mark["style"] == "left:22.000%;width:27.000%"
    assert "2.2 s – 4.9 s" in page.text


def test_a_window_is_placed_on_the_whole_clip() -> None:
    page = Elements(strip_html(video(4, start=2.0, end=6.0), [Span(3.0, 3.0)]))
    (window,), (mark,) = page.of_class("vlm-window"), page.of_class("vlm-mark")
    assert window["style"] == "left:20.000%;width:40.000%"
    assert mark["style"] == "left:30.000%;width:0.000%"
    assert [f["data-seek"] for f in page.of_class("vlm-marked")] == ["3.500"]
    np.testing.assert_allclose(video_edges(video(4, start=2.0, end=6.0)), [2, 3, 4, 5, 6])


@pytest.mark.parametrize("count", [1, 2, 11, 12, 13, 64, 256])
@pytest.mark.parametrize("where", [0.0, 0.37, 0.5, 0.999])
def test_every_span_has_a_frame_and_the_strip_keeps_its_length(count: int, where: float) -> None:
    edges = np.linspace(0, 100, count + 1)
    span = Span(100 * where, 100 * where + 0.05)
    picks = choose_frames(edges, [span])
    assert picks == sorted(set(picks)) and picks[0] >= 0 and picks[-1] < count
    assert len(picks) <= min(count, STRIP_FRAMES) and len(picks) >= min(count, STRIP_FRAMES) - 1
    assert any(in_span(edges[i], edges[i + 1], [span]) for i in picks)


def test_thumbnails_have_the_shape_of_the_clip() -> None:
    for width, height in ((160, 90), (90, 160), (100, 100), (4000, 100)):
        markup = strip_html(video(2, width=width, height=height))
        data = re.findall(r"data:image/jpeg;base64,([^\"]+)", markup)
        assert len(data) == 2
        size = Image.open(io.BytesIO(base64.b64decode(data[0]))).size
        assert size[0] / size[1] == pytest.approx(min(max(width / height, 0.3), 3.0), abs=0.02)


def test_many_spans_do_not_flood_the_page() -> None:
    page = Elements(strip_html(video(), [Span(i / 10, i / 10 + 0.1) for i in range(50)]))
    assert len(page.of_class("vlm-chip")) == MAX_CHIPS
    assert f"and {50 - MAX_CHIPS} more" in page.text


EVIL = [
    "<script>pwned=1</script>",
    "\"><img src=x onerror='pwned=1'>",
    "' autofocus onfocus=pwned=1 x='",
    "${pwned=1}",
    "`${pwned=1}`",
    "{{constructor.constructor('pwned=1')()}}",
    "</ul></section><iframe srcdoc='<script>parent.pwned=1</script>'>",
    "&lt;script&gt;",
    "<svg/onload=pwned=1>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=pwned=1>",
]


@pytest.mark.parametrize("evil", EVIL)
def test_no_text_becomes_markup(evil: str) -> None:
    usage = Usage(1, 0, 0, 1, 0, {"first_token": 0.1})
    harmless = [tag for tag, _ in Elements(usage_html(usage, notes=["x"])).tags]
    page = Elements(usage_html(usage, notes=[evil]))
    assert [tag for tag, _ in page.tags] == harmless
    assert page.text.endswith(evil)
    assert not set("<>\"'`${}") & set(escape(evil).replace("&#x27;", ""))

    name = evil.replace("/", "\u2215")
    player = Elements(player_html(Path("folder") / f"{name}.mp4", "video"))
    assert [tag for tag, _ in player.tags] == ["figure", "video", "p"]
    attributes = player.tags[1][1]
    assert set(attributes) == {"src", "title", "controls", "playsinline", "muted", "preload"}
    assert attributes["title"] == f"{name}.mp4"
    assert unquote(str(attributes["src"])) == f"gradio_api/file=folder/{name}.mp4"


def test_counts_and_timings_are_there() -> None:
    seconds = {"decode": 0.0, "encode": 1.25, "first_token": 2.0, "generate": 2.0}
    text = Elements(usage_html(Usage(1234, 56, 48, 30, 64, seconds), read_seconds=0.5)).text
    for fact in ("1,234 tokens read", "48 of them visual, from 64 frames", "56 reused", "30 written", "15 tokens/s"):
        assert fact in text
    assert "0.50 s to decode" in text and "1.25 s to encode" in text and "2.50 s to the first word" in text
