"""The served page under attack and under load, over plain HTTP."""

from __future__ import annotations

import html
import json
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from demo.app import _friendly, launch_options, serve
from demo.clips import FOLDER, available
from tests.demo.conftest import QUESTION, SPOKEN, THEIR_WARNINGS, Pace
from vlm.chat import Assistant
from vlm.errors import ConfigError, MediaError

pytestmark = THEIR_WARNINGS

ROOT = Path(__file__).resolve().parents[2]
CONTROLS: list[Any] = ["frames", 4, 1.0, "", "", 128, 0]


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60.0, trust_env=False) as client:
        yield client


def index_of(page: Any, name: str) -> int:
    """Number of the first event that calls a handler."""
    return next(i for i, event in page.fns.items() if event.name == name)


def body(page: Any, name: str, data: list[Any], session: str) -> dict[str, Any]:
    return {"fn_index": index_of(page, name), "data": data, "session_hash": session, "event_data": None}


def upload(client: httpx.Client, name: str, content: bytes) -> httpx.Response:
    return client.post("gradio_api/upload", files={"files": (name, content)})


def take(client: httpx.Client, page: Any, session: str, text: str, files: list[Any]) -> httpx.Response:
    """Put a question where it waits for its turn, as the text box does."""
    return client.post(
        "gradio_api/run/predict", json=body(page, "take", [{"text": text, "files": files}, None], session)
    )


def file_data(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


def ask(client: httpx.Client, page: Any, session: str, clip: Path) -> httpx.Response:
    """Upload a clip and stand in the queue with a question about it."""
    (path,) = upload(client, clip.name, clip.read_bytes()).json()
    assert take(client, page, session, QUESTION, [file_data(path)]).status_code == 200
    return client.post("gradio_api/queue/join", json=body(page, "answer", [None, *CONTROLS], session))


def events(client: httpx.Client, session: str) -> Generator[dict[str, Any], None, None]:
    """What the server sends about a session's questions, until it closes the stream."""
    with client.stream("GET", "gradio_api/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                yield json.loads(line[5:])


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_a_port_that_cannot_be_is_named(parrot: Assistant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:99999 .*; choose another with --port"):
        serve(parrot, port=99_999)


def test_errors_are_told_in_one_sentence() -> None:
    assert _friendly(MediaError("a.mp4", "301 frames exceed")) == "I cannot use a.mp4: 301 frames exceed."


def test_it_listens_on_this_machine_only_and_serves_only_the_examples(url: str) -> None:
    options = launch_options()
    assert options["server_name"] == "127.0.0.1" and url.startswith("http://127.0.0.1:")
    assert options["allowed_paths"] == [str(FOLDER)]
    assert options["show_error"] is False and options["share"] is False and options["enable_monitoring"] is False


FILES = ("/etc/passwd", "/proc/self/environ", str(ROOT / "demo/app.py"), str(ROOT / "pyproject.toml"))
FORMS = (
    "{}",
    "/{}",
    "file://{}",
    "{examples}/../../../../../../../../..{}",
    "{examples}/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..{}",
    "{examples}/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e{}",
    "{examples}/..%252f..%252f..%252f..%252f..%252f..{}",
    "..\\..\\..\\..{}",
    "{}%00.mp4",
    "....//....//....//....{}",
)


@pytest.mark.parametrize("form", FORMS)
def test_no_form_of_a_path_reaches_another_file(client: httpx.Client, form: str) -> None:
    for file in FILES:
        path = form.format(file, examples=FOLDER)
        began = time.monotonic()
        answer = client.get(f"gradio_api/file={path}")
        assert answer.status_code in (400, 403, 404), (path, answer.status_code)
        assert time.monotonic() - began < 10
        for secret in ("root:", "PATH=", "import gradio", "[project]"):
            assert secret not in answer.text


def test_an_example_is_served_in_parts(client: httpx.Client) -> None:
    if not available():
        pytest.skip("no example clips in this checkout")
    path = available()[0].path
    answer = client.get(f"gradio_api/file={path}", headers={"Range": "bytes=0-99"})
    assert answer.status_code == 206 and answer.content == path.read_bytes()[:100]


def test_too_large_an_upload_is_refused(client: httpx.Client) -> None:
    assert upload(client, "big.mp4", bytes(3 << 20)).status_code == 413


@pytest.mark.parametrize(
    "name", ["../../../../../pwn.mp4", "/etc/pwn.mp4", "..\\..\\pwn.mp4", "a/../../pwn.mp4", "..", "%2e%2e%2fpwn.mp4"]
)
def test_an_upload_stays_in_its_folder(client: httpx.Client, page: Any, name: str) -> None:
    answer = upload(client, name, b"x")
    if answer.status_code == 200:
        (path,) = answer.json()
        assert Path(path).resolve().is_relative_to(Path(page.app.uploaded_file_dir).resolve())
    else:
        assert answer.status_code in (400, 422)


@pytest.mark.parametrize("path", FILES)
def test_a_question_cannot_name_a_file_of_the_server(client: httpx.Client, page: Any, path: str) -> None:
    answer = take(client, page, "thief", "What is it?", [file_data(path, orig_name="a.mp4", mime_type="video/mp4")])
    assert answer.status_code >= 400
    assert "Traceback" not in answer.text and path not in answer.text


def test_a_question_cannot_make_the_server_fetch_something(client: httpx.Client, page: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(1.0)
        target = f"http://127.0.0.1:{listener.getsockname()[1]}/secret.mp4"
        for files in ([file_data(target)], [file_data("a.mp4", url=target)], [{"path": target, "url": target}]):
            take(client, page, "ssrf", "What is it?", files)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_nonsense_is_answered_with_an_error_and_no_traceback(client: httpx.Client, page: Any) -> None:
    deep = "[" * 20_000 + "]" * 20_000
    for content in (b"{", b"null", deep.encode(), b"\xff\xfe"):
        answer = client.post("gradio_api/queue/join", content=content, headers={"Content-Type": "application/json"})
        assert 400 <= answer.status_code < 500
        assert "Traceback" not in answer.text
    answer = client.post("gradio_api/run/predict", json=body(page, "take", [{"text": 3, "files": "x"}, None], "n"))
    assert answer.status_code >= 400 and "Traceback" not in answer.text
    assert client.get("").status_code == 200


def test_a_question_is_answered(client: httpx.Client, page: Any, clip: Path) -> None:
    assert ask(client, page, "one", clip).status_code == 200
    last = [e for e in events(client, "one") if e["msg"] == "process_completed"][-1]
    assert last["success"]
    assert SPOKEN in json.dumps(last["output"]["data"], ensure_ascii=False)


def test_a_full_queue_says_so_at_once(client: httpx.Client, page: Any, clip: Path, pace: Pace) -> None:
    pace.seconds = 0.5
    answers = [ask(client, page, f"crowd{i}", clip) for i in range(7)]
    codes = [a.status_code for a in answers]
    assert codes[:3] == [200] * 3 and 503 in codes and set(codes) == {200, 503}
    assert "full" in next(a for a in answers if a.status_code == 503).text
    pace.seconds = 0.0
    for i, code in enumerate(codes):
        if code == 200:
            assert any(e["msg"] == "process_completed" and e["success"] for e in events(client, f"crowd{i}"))


def test_a_question_that_is_stopped_while_it_waits_is_never_asked(
    client: httpx.Client, page: Any, clip: Path, pace: Pace
) -> None:
    pace.seconds = 0.2
    for session in ("before", "impatient"):
        assert ask(client, page, session, clip).status_code == 200
    assert eventually(lambda: pace.passes > 1)
    for session in ("impatient", "before"):
        assert client.post("gradio_api/run/predict", json=body(page, "stop", [], session)).status_code == 200
    for session, answers in (("before", 1), ("impatient", 0)):
        last = [e for e in events(client, session) if e["msg"] == "process_completed"][-1]
        assert last["success"]
        assert json.dumps(last["output"]["data"]).count('"assistant"') == answers
    assert pace.passes < 34


def test_a_visitor_who_leaves_stops_the_model(
    client: httpx.Client, page: Any, url: str, clip: Path, pace: Pace
) -> None:
    pace.seconds = 0.3
    assert ask(client, page, "gone", clip).status_code == 200
    with httpx.Client(base_url=url, timeout=60.0, trust_env=False) as tab:
        stream = events(tab, "gone")
        assert eventually(lambda: next(stream)["msg"] == "process_generating")
        assert eventually(lambda: pace.passes > 2)
        stream.close()
    time.sleep(1.5)
    passes = pace.passes
    time.sleep(2.0)
    assert pace.passes <= passes + 1, "the model goes on writing for nobody"
    assert passes < 34


def test_our_own_failure_is_a_friendly_sentence(client: httpx.Client, page: Any, clip: Path, parrot: Any) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("secret detail")

    handle = parrot.model.vision_tower.register_forward_pre_hook(fail)
    try:
        assert ask(client, page, "unlucky", clip).status_code == 200
        text = html.unescape(json.dumps(list(events(client, "unlucky"))))
    finally:
        handle.remove()
    assert "not your file's fault" in text
    assert "secret detail" not in text and "Traceback" not in text


def test_many_visitors_leave_no_threads_behind(client: httpx.Client, page: Any, clip: Path) -> None:
    assert ask(client, page, "first", clip).status_code == 200
    list(events(client, "first"))
    before = threading.active_count()
    for i in range(6):
        assert ask(client, page, f"many{i}", clip).status_code == 200
        list(events(client, f"many{i}"))
    assert eventually(lambda: threading.active_count() <= before + 2)
