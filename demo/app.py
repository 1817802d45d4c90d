"""The page: chat on the left, clip and controls on the right, the strip of frames below.

One question runs through `Handlers.answer`: check the controls, read the files, stream the answer, show where it lies
in time. The queue lets one question at a time reach the model; a waiting line that is full says so at once.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from demo.clips import FOLDER, Example, available
from demo.intake import (
    KINDS,
    MAX_FPS,
    MAX_FRAMES,
    MAX_NEW_TOKENS,
    MAX_TEMPERATURE,
    MAX_UPLOAD_BYTES,
    check_settings,
    kind_of,
)
from demo.page import CSS, SCRIPT, theme
from demo.sessions import Session, Sessions
from demo.strip import EMPTY_PLAYER, EMPTY_STRIP, escape, player_html, strip_html, usage_html
from vlm.errors import ConfigError, MediaError, VLMError
from vlm.prepare import DEFAULT_FRAMES

if TYPE_CHECKING:
    from vlm.chat import Assistant

QUEUE_LENGTH = 16
SECONDS_BETWEEN_UPDATES = 0.05
DEFAULT_QUESTION = "What is in this video?"
WELCOME = """What is there? When does it happen? In what order?

Follow-up questions are quick: the clip is not read again."""
OUR_FAULT = (
    "Something went wrong here, and it is not your file's fault. The server's log has the details; please try again."
)

log = logging.getLogger(__name__)


class Handlers:
    """What happens on each event; one per running page, shared by all visitors."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions

    def take(self, message: dict[str, Any] | None) -> tuple[Any, dict[str, Any] | None]:
        """Move the question from the text box to where it waits for its turn."""
        text, files = _parse(message)
        return (_busy(), message) if text or files else (_idle(), None)

    def answer(
        self,
        message: dict[str, Any] | None,
        sampling: str,
        frames: float | None,
        fps: float | None,
        start: str | None,
        end: str | None,
        max_new_tokens: float | None,
        temperature: float | None,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Waiting message (none any more), chat, player and strip while one question is answered."""
        text, files = _parse(message)
        if not text and not files:
            return
        session = self.sessions.get(str(request.session_hash))
        session.begin(text or DEFAULT_QUESTION, files)
        yield _view(session)
        try:
            settings = check_settings(sampling, frames, fps, start, end, max_new_tokens, temperature)
            if files:
                yield _view(session, player=player_html(files[0], kind_of(files[0])), strip=EMPTY_STRIP)
            session.see(files, settings.look)
            with closing(session.ask(settings)) as stream:
                yield from _paced(session, stream)
        except VLMError as error:
            session.say(_friendly(error))
        except Exception:
            log.exception("the answer failed")
            session.say(OUR_FAULT)
        yield _view(session)

    def settle(self, message: dict[str, Any] | None) -> tuple[Any, None]:
        """After an answer: the text box is free again. A question that a full queue turned away goes back into it."""
        return (_idle(value=message) if message else _idle()), None

    def stop(self, request: gr.Request) -> None:
        """The stop button: end the answer, or take the question out of the queue."""
        self.sessions.stop(str(request.session_hash))

    def restart(self, request: gr.Request) -> tuple[Any, ...]:
        """The button for a new conversation."""
        self.sessions.drop(str(request.session_hash))
        return None, [], EMPTY_PLAYER, EMPTY_STRIP

    def leave(self, request: gr.Request) -> None:
        """The tab was closed: free what its conversation held."""
        self.sessions.drop(str(request.session_hash))


def _idle(**changes: Any) -> dict[str, Any]:
    """The text box when no answer is on its way. (A new object each time: Gradio takes updates apart.)"""
    return gr.update(submit_btn=True, stop_btn=False, **changes)


def _busy() -> dict[str, Any]:
    return gr.update(value={"text": "", "files": []}, submit_btn=False, stop_btn=True)


def _parse(message: dict[str, Any] | None) -> tuple[str, list[Path]]:
    """Question and files of what the text box sent."""
    message = message or {}
    return str(message.get("text") or "").strip(), [Path(f) for f in message.get("files") or []]


def _paced(session: Session, stream: Iterator[str]) -> Iterator[tuple[Any, ...]]:
    """The view as the answer grows, not more often than a reader can see."""
    shown = 0.0
    view = _view(session)
    yield view
    for _ in stream:
        if time.perf_counter() - shown > SECONDS_BETWEEN_UPDATES:
            shown = time.perf_counter()
            yield None, _messages(session), *view[2:]


def _view(session: Session, *, player: str | None = None, strip: str | None = None) -> tuple[Any, ...]:
    """All that the page shows of a session. Every update carries it all: a busy browser may skip some."""
    return None, _messages(session), player or _player(session), strip or _strip(session)


def _messages(session: Session) -> list[dict[str, str]]:
    """The transcript for `gr.Chatbot`, which takes content for HTML even with ``render_markdown=False``."""
    return [{"role": m["role"], "content": escape(m["content"])} for m in session.transcript]


def _friendly(error: VLMError) -> str:
    return f"I cannot use {error}." if isinstance(error, MediaError) else str(error)


def _player(session: Session) -> str:
    return player_html(session.files[0], kind_of(session.files[0])) if session.files else EMPTY_PLAYER


def _strip(session: Session) -> str:
    """Frames with the last answer's spans, and its counts and timings."""
    media, reply = session.media, session.chat.reply
    if media is None:
        return EMPTY_STRIP
    footer = usage_html(reply.usage, read_seconds=session.read_seconds, notes=media.notes) if reply else ""
    if media.video is None:
        return f'<section class="vlm-strip">{footer}</section>' if footer else EMPTY_STRIP
    return strip_html(media.video, reply.spans if reply else (), footer=footer)


# -- the page ----------------------------------------------------------------------------------------------------------


def build(assistant: Assistant, *, max_sessions: int = 8, queue_length: int = QUEUE_LENGTH) -> gr.Blocks:
    """The page around one model, not yet served.

    Args:
        assistant: A loaded model.
        max_sessions: Conversations kept at a time, see `Sessions`.
        queue_length: Questions that may wait; further ones are turned away at once.
    """
    handlers = Handlers(Sessions(assistant, max_sessions=max_sessions))
    page = gr.Blocks(title="Ask a video", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600))
    with page:
        with gr.Row(elem_id="head"):
            gr.HTML(_title(assistant.name), js_on_load=None)
            new = gr.Button("New conversation", size="sm", elem_id="new")
        with gr.Row(elem_id="main"):
            with gr.Column(scale=10, min_width=420, elem_id="talk"):
                chat, box, buttons = _talk()
            with gr.Column(scale=11, min_width=380, elem_id="see"):
                player = gr.HTML(EMPTY_PLAYER, js_on_load=None, elem_id="player")
                controls = _controls()
        strip = gr.HTML(EMPTY_STRIP, js_on_load=None, elem_id="strip")
        waiting = gr.State(None)
        shown = [waiting, chat, player, strip]
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        for begin in (box.submit, *(_after_filling(button, example, box, quick) for button, example in buttons)):
            taken = begin(handlers.take, inputs=box, outputs=[box, waiting], **quick)
            answered = taken.success(
                handlers.answer,
                inputs=[waiting, *controls],
                outputs=shown,
                concurrency_limit=1,
                concurrency_id="model",
                show_progress="minimal",
                show_progress_on=[chat],
                api_visibility="private",
            )
            answered.then(handlers.settle, inputs=waiting, outputs=[box, waiting], **quick)
        box.stop(handlers.stop, outputs=waiting, **quick)
        new.click(handlers.restart, outputs=shown, **quick)
        page.unload(handlers.leave)
    return page.queue(max_size=queue_length, default_concurrency_limit=1)


def _title(model: str) -> str:
    return (
        f'<div class="vlm-title"><h1>Ask a video<span class="vlm-model">{escape(model or "vlm")}</span></h1>'
        "<p>Give a clip and ask about it. Where the answer names a time, the frames of that moment light up below; "
        "click one to go there.</p></div>"
    )


def _talk() -> tuple[gr.Chatbot, gr.MultimodalTextbox, list[tuple[gr.Button, Example]]]:
    chat = gr.Chatbot(
        height=432,
        show_label=False,
        elem_id="chat",
        render_markdown=False,  # together with `_messages`: text is shown letter by letter, never as markup or links
        latex_delimiters=[],
        allow_tags=False,
        buttons=[],
        placeholder=WELCOME,
    )
    box = gr.MultimodalTextbox(
        show_label=False,
        placeholder="Ask about a video, a picture or a sound",
        file_types=["video", "image", "audio", *KINDS],  # the suffixes too: Gradio asks the system's table
        file_count="multiple",
        sources=["upload"],
        max_plain_text_length=2000,
        autofocus=True,
        elem_id="box",
    )
    with gr.Row(elem_id="examples"):
        buttons = [(gr.Button(e.label, size="sm"), e) for e in available()]
    return chat, box, buttons


def _controls() -> list[Any]:
    """The controls in the order of `Handlers.answer`."""
    with gr.Group(elem_id="settings"):
        with gr.Row():
            kinds = [("in total", "frames"), ("per second", "fps")]
            sampling = gr.Radio(kinds, value="frames", label="Frames to look at", elem_id="sampling", min_width=220)
            frames = gr.Slider(
                1, MAX_FRAMES, value=DEFAULT_FRAMES, step=1, label="How many", elem_id="frames", min_width=220
            )
            fps = gr.Slider(
                0.1, MAX_FPS, value=1.0, step=0.1, label="How many", visible=False, elem_id="fps", min_width=220
            )
        with gr.Row():
            start = gr.Textbox(label="From", placeholder="start", max_length=12, elem_id="start", min_width=90)
            end = gr.Textbox(label="To", placeholder="end", max_length=12, elem_id="end", min_width=90)
            length = gr.Number(
                128, label="Longest answer", minimum=1, maximum=MAX_NEW_TOKENS, precision=0, min_width=110
            )
            warmth = gr.Number(0.0, label="Temperature", minimum=0, maximum=MAX_TEMPERATURE, step=0.1, min_width=110)
    sampling.change(
        lambda kind: (gr.update(visible=kind == "frames"), gr.update(visible=kind == "fps")),
        inputs=sampling,
        outputs=[frames, fps],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    return [sampling, frames, fps, start, end, length, warmth]


def _after_filling(button: gr.Button, example: Example, box: gr.MultimodalTextbox, quick: dict[str, Any]) -> Any:
    """The event that follows when ``button`` has put its example into the text box."""
    filled = button.click(lambda: {"text": example.question, "files": [str(example.path)]}, outputs=box, **quick)
    return filled.success


# -- serving -----------------------------------------------------------------------------------------------------------


def launch_options(*, host: str = "127.0.0.1", port: int | None = None, share: bool = False) -> dict[str, Any]:
    """Arguments of `gradio.Blocks.launch`: only the examples and the page's uploads are served, no traceback leaves."""
    return {
        "server_name": host,
        "server_port": port,
        "share": share,
        "show_error": False,
        "max_file_size": MAX_UPLOAD_BYTES,
        "allowed_paths": [str(FOLDER)],
        "enable_monitoring": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "footer_links": [],
        "theme": theme(),
        "css": CSS,
        "head": SCRIPT,
    }


def serve(assistant: Assistant, *, host: str = "127.0.0.1", port: int = 7860, share: bool = False) -> None:
    """Serve the page until interrupted; uploads live in a private folder that goes away afterwards.

    Raises:
        ConfigError: The port cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="vlm-demo-") as folder:
        os.environ.setdefault("GRADIO_TEMP_DIR", folder)
        try:
            build(assistant).launch(**launch_options(host=host, port=port, share=share))
        except (OSError, OverflowError) as error:  # taken, not allowed; no port at all
            raise ConfigError(f"cannot serve on {host}:{port} ({error}); choose another with --port") from error
