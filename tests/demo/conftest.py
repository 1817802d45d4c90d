"""A real, tiny model that has learnt a few answers by heart, a page served around it, and a browser to look at it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import random_frames, tiny_assistant
from vlm.chat import Assistant

# Gradio's queue keeps its statistics in pandas, in ways that pandas 3 has deprecated; that is theirs to settle.
THEIR_WARNINGS = [
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]

QUESTION = "When is it bright?"
ANSWER = "It is bright from {t:2.0} to {t:3.0}, I think."  # of the 4 s that four frames given as arrays last
SPOKEN = "It is bright from 1.0 s to 1.5 s, I think."  # what that is in a clip of 2 s
AGAIN = "And then?"


def teach(assistant: Assistant, *, steps: int = 120) -> float:
    """Overfit the language model and the connector to one conversation; returns the last loss."""
    model = assistant.model.train()
    model.vision_tower.requires_grad_(False)
    part = {"type": "video", "video": random_frames(4), "num_frames": 4}
    messages: list[dict[str, Any]] = []
    for question, answer in ((QUESTION, ANSWER), (AGAIN, ANSWER)):
        messages.append({"role": "user", "content": [{"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": answer})
    messages[0]["content"].insert(0, part)
    batch = assistant.processor.collate([assistant.processor.training_example(messages)])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return loss.item()


@pytest.fixture(scope="session")
def parrot() -> Assistant:
    """The tiny model that says `SPOKEN` when asked `QUESTION` about four frames."""
    assistant = tiny_assistant(time={"codec": "relative", "num_tokens": 21, "interleave": True})
    assert teach(assistant) < 0.05
    return assistant


class Pace:
    """Makes each pass through the language model take a while, as on a small computer, and counts the passes."""

    def __init__(self) -> None:
        self.seconds, self.passes = 0.0, 0

    def __call__(self, *_: Any) -> None:
        self.passes += 1
        time.sleep(self.seconds)


@pytest.fixture
def pace(parrot: Assistant) -> Iterator[Pace]:
    """Set ``pace.seconds`` to slow the model down during one test."""
    pace = Pace()
    handle = parrot.model.language_model.register_forward_pre_hook(pace)
    yield pace
    handle.remove()


@pytest.fixture(scope="session")
def page(parrot: Assistant, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The real page (`gradio.Blocks`), served on this machine with the real options, but for a small upload limit and queue."""
    pytest.importorskip("gradio", reason="the demo needs gradio")
    from demo.app import build, launch_options

    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("uploads"))
    blocks = build(parrot, max_sessions=4, queue_length=3)
    options = {**launch_options(), "max_file_size": 1 << 20, "prevent_thread_lock": True, "quiet": True}
    blocks.launch(**options)
    yield blocks
    blocks.close()


@pytest.fixture(scope="session")
def url(page: Any) -> str:
    """Address of the page, with a slash at the end."""
    return str(page.local_url)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium with a profile of its own."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="the browser test needs selenium")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("the browser test needs chromium and chromedriver (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    flags += f" disable-component-update disable-sync user-data-dir={tmp_path_factory.mktemp('profile')}"
    for flag in [*flags.split(), "window-size=1280,900"]:
        options.add_argument(f"--{flag}")
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A file that only claims to be a video."""
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"no video at all" * 100)
    return path
