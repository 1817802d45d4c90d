"""Endpoints: a real server in a thread, busy at first, broken, silent; a local model; names."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from data_recipes.text_models import Endpoint, LocalModel, text_model
from tests.tiny import byte_tokenizer, text_config
from vlm.errors import ConfigError, DataError


class Server(ThreadingHTTPServer):
    """Says what it was asked, after ``refusals`` refusals."""

    refusals: list[int]
    asked: list[dict[str, Any]]
    reply: Any = None


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
        if self.server.refusals:
            self.send_error(self.server.refusals.pop(0), "not now")
            return
        text = f"{body['messages'][-1]['content']} it is"
        reply = self.server.reply or {"choices": [{"message": {"role": "assistant", "content": text}}]}
        payload = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.refusals, made.asked = [], []
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def at(server: Server, **options: Any) -> Endpoint:
    return Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "small", **options)


def test_the_question_arrives_and_the_answer_comes_back(server: Server) -> None:
    answer = at(server, key="secret").complete("Blue", system="Be brief.", max_tokens=9, temperature=0.5, seed=3)
    assert answer == "Blue it is"
    (asked,) = server.asked
    assert asked["path"] == "/v1/chat/completions" and asked["key"] == "Bearer secret"
    assert [m["role"] for m in asked["messages"]] == ["system", "user"]
    assert (asked["model"], asked["max_tokens"], asked["temperature"], asked["seed"]) == ("small", 9, 0.5, 3)
    assert "secret" not in repr(at(server, key="secret"))


def test_a_busy_server_is_asked_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("data_recipes.text_models.time.sleep", waits.append)
    server.refusals = [429, 503]
    assert at(server).complete("Red") == "Red it is"
    assert waits == [1.0, 2.0]
    server.refusals = [500] * 9
    with pytest.raises(DataError, match="500 not now"):
        at(server).complete("Red")
    assert len(server.asked) == 3 + 4


def test_what_no_further_try_can_mend_is_said_at_once(server: Server) -> None:
    server.refusals = [401]
    with pytest.raises(DataError, match="401 not now"):
        at(server).complete("Red")
    assert len(server.asked) == 1


@pytest.mark.parametrize("reply", [{"error": "x"}, {"choices": []}, {"choices": [{"message": {"content": None}}]}, [1]])
def test_answers_without_text_are_errors(server: Server, reply: Any) -> None:
    server.reply = reply
    with pytest.raises(DataError, match="answered"):
        at(server).complete("Red")


def test_no_json_and_no_server(server: Server) -> None:
    server.reply = b"<html>"
    with pytest.raises(DataError, match="cannot be asked"):
        at(server, retries=0).complete("Red")
    with pytest.raises(DataError, match="cannot be asked"):
        Endpoint("http://127.0.0.1:9/v1", "none", retries=0, timeout=2).complete("Red")


def test_a_local_model_answers_too(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_config(text_config()).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model = text_model(str(tmp_path))
    assert isinstance(model, LocalModel)
    assert model.complete("a", max_tokens=4) == model.complete("a", max_tokens=4)
    with pytest.raises(ConfigError, match="cannot read"):
        LocalModel(str(tmp_path / "nothing")).complete("a")


def test_names_of_models() -> None:
    assert text_model("http://localhost:8000/v1#qwen") == Endpoint("http://localhost:8000/v1", "qwen")
    with pytest.raises(ConfigError, match="URL#MODEL"):
        text_model("http://localhost:8000/v1")
    with pytest.raises(ConfigError, match="no http address"):
        Endpoint("localhost", "x")
