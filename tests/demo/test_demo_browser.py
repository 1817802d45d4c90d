"""The real page with a real model in a real browser: upload, ask, watch the answer grow, jump to its time, stop, break things."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.demo.conftest import AGAIN, QUESTION, SPOKEN, THEIR_WARNINGS, Pace

pytestmark = THEIR_WARNINGS
PATIENCE = 120.0  # seconds; a busy machine is slow, a right page is never wrong
EVIL = "<img src=x onerror=\"pwned=1\"><script>pwned=1</script>${pwned=1}{{constructor.constructor('pwned=1')()}}"
BOT, USER = "#chat .bot-row .message-content", "#chat .user-row .message-content"
WATCH = """
window.seen = [];
new MutationObserver(() => {
  const answers = document.querySelectorAll('#chat .bot-row .message-content');
  if (answers.length) window.seen.push(answers[answers.length - 1].innerText.trim());
}).observe(document.querySelector('#chat'), {subtree: true, childList: true, characterData: true});
"""


class Visitor:
    """What a person does on the page."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser = browser
        browser.get(url)
        self.wait(lambda: self.all("#box textarea"))
        self.run(WATCH)

    def run(self, script: str, *values: Any) -> Any:
        return self.browser.execute_script(script, *values)

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText.trim())"
        return list(self.run(script, selector))

    def wait(self, condition: Callable[[], Any]) -> Any:
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.browser, PATIENCE, poll_frequency=0.1).until(lambda _: condition())

    def wait_until_idle(self) -> None:
        """Until every question has its answer and the text box takes the next one."""
        self.wait(lambda: self.all("#box .submit-button") and not self.all("#box .stop-button"))
        self.wait(lambda: len(self.texts(BOT)) == len(self.texts(USER)))

    def look_at(self, frames: int) -> None:
        """Set the number of frames; the page may need a moment after loading before its controls listen."""
        from selenium.webdriver.common.keys import Keys

        def taken() -> bool:
            (field,) = self.all("#frames input[type=number]")
            field.send_keys(Keys.CONTROL + "a")
            field.send_keys(str(frames), Keys.TAB)
            return bool(self.run("return document.querySelector('#frames input[type=range]').value") == str(frames))

        self.wait(taken)

    def attach(self, path: Path) -> None:
        (chooser,) = self.all("#box input[type=file]")
        self.run("arguments[0].value = ''", chooser)  # a driver adds to an earlier choice, a person replaces it
        chooser.send_keys(str(path))
        self.wait(lambda: self.run("return !!document.querySelector('#box .thumbnails, #box [class*=thumbnail]')"))

    def ask(self, question: str) -> None:
        from selenium.webdriver.common.keys import Keys

        asked = len(self.all(USER))
        (field,) = self.all("#box textarea")
        field.send_keys(question, Keys.ENTER)
        self.wait(lambda: len(self.all(USER)) > asked)


@pytest.fixture
def visitor(browser: Any, url: str) -> Visitor:
    visitor = Visitor(browser, url)
    visitor.look_at(4)
    return visitor


def test_ask_see_the_span_and_go_there(visitor: Visitor, clip: Path, pace: Pace) -> None:
    pace.seconds = 0.03
    visitor.attach(clip)
    visitor.ask(QUESTION)
    visitor.wait_until_idle()
    assert visitor.texts(USER)[-1].endswith(QUESTION) and "clip.mp4" in visitor.texts(USER)[-1]
    assert visitor.texts(BOT) == [SPOKEN], visitor.texts(".vlm-usage li")
    growing = {text for text in visitor.run("return window.seen") if text and text != SPOKEN}
    assert growing and all(SPOKEN.startswith(text[:5]) for text in growing), "the answer did not grow word by word"

    assert visitor.texts(".vlm-frame") == ["0.2 s", "0.7 s", "1.2 s", "1.7 s"]
    assert visitor.texts(".vlm-marked") == ["1.2 s", "1.7 s"]
    assert visitor.texts(".vlm-chip") == ["1.0 s – 1.5 s"]
    facts = " ".join(visitor.texts(".vlm-usage li"))
    assert "from 4 frames" in facts and "34 written" in facts and "tokens/s" in facts

    position = "return document.querySelector('.vlm-player video').currentTime"
    visitor.wait(lambda: visitor.run("return document.querySelector('.vlm-player video').readyState >= 1"))
    visitor.all(".vlm-marked")[1].click()
    visitor.wait(lambda: abs(visitor.run(position) - 1.7) < 0.01)
    visitor.all(".vlm-chip")[0].click()
    visitor.wait(lambda: abs(visitor.run(position) - 1.0) < 0.01)
    visitor.wait(lambda: visitor.run("return document.querySelector('.vlm-playhead').style.left") == "50%")

    visitor.run("document.querySelector('.vlm-player video').untouched = true")
    visitor.ask(AGAIN)
    visitor.wait_until_idle()
    assert visitor.texts(BOT) == [SPOKEN, SPOKEN]
    facts = " ".join(visitor.texts(".vlm-usage li"))
    assert "reused" in facts and "frames" not in facts
    assert visitor.run("return document.querySelector('.vlm-player video').untouched"), "a follow-up reloaded the clip"


def test_nothing_comes_from_another_machine_and_no_script_fails(visitor: Visitor) -> None:
    names = visitor.run("return performance.getEntriesByType('resource').map(e => e.name)")
    origin = visitor.run("return location.origin")
    assert len(names) > 10
    assert [n for n in names if not n.startswith((origin, "data:", "blob:"))] == []
    severe = [entry for entry in visitor.browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert [e["message"] for e in severe if "manifest" not in e["message"]] == []


def test_stop_ends_the_answer_at_once(visitor: Visitor, clip: Path, pace: Pace) -> None:
    pace.seconds = 0.2
    visitor.attach(clip)
    visitor.ask(QUESTION)
    visitor.wait(lambda: any(visitor.texts(BOT)))
    visitor.all("#box .stop-button")[0].click()
    visitor.wait_until_idle()
    (answer,) = visitor.texts(BOT)
    assert answer != SPOKEN and answer
    assert 1 < pace.passes < 34
    pace.seconds = 0.0
    visitor.ask("Once more?")
    visitor.wait_until_idle()
    assert len(visitor.texts(BOT)) == 2


def test_a_broken_file_gets_a_message_and_the_page_goes_on(visitor: Visitor, broken: Path, clip: Path) -> None:
    visitor.attach(broken)
    visitor.ask("What is this?")
    visitor.wait_until_idle()
    (answer,) = visitor.texts(BOT)
    assert answer.startswith("I cannot use broken.mp4: ")
    assert "Traceback" not in answer and str(broken.parent) not in answer
    assert visitor.all("#player .vlm-empty")
    visitor.attach(clip)
    visitor.ask(QUESTION)
    visitor.wait_until_idle()
    assert visitor.texts(BOT)[-1] == SPOKEN


def test_markup_in_names_questions_and_answers_is_only_text(
    visitor: Visitor, page: Any, clip: Path, tmp_path: Path
) -> None:
    evil = tmp_path / '<img src=x onerror="pwned=1">${pwned=1}.mp4'
    shutil.copy(clip, evil)
    visitor.attach(evil)
    visitor.ask(EVIL)
    visitor.wait_until_idle()
    assert visitor.texts(USER)[-1].endswith(EVIL)
    assert visitor.all(".vlm-player video") and visitor.all(".vlm-frame")

    handlers = next(event.fn.__self__ for event in page.fns.values() if event.name == "answer")
    (session,) = (s for s in handlers.sessions if s.question == EVIL)
    session.transcript[-1]["content"] = EVIL  # as if the model had said it, or a caption in the clip
    visitor.ask(EVIL)
    visitor.wait_until_idle()
    assert visitor.texts(BOT)[0] == EVIL
    assert visitor.all("#chat img") == [] and visitor.all("#chat script") == []
    assert visitor.run("return window.pwned") is None


def test_an_example_and_a_new_conversation_take_one_click_each(visitor: Visitor) -> None:
    from demo.clips import available

    if not available():
        pytest.skip("no example clips in this checkout")
    visitor.all("#examples button")[0].click()
    visitor.wait(lambda: visitor.texts(".vlm-usage li"))
    visitor.wait_until_idle()
    assert available()[0].question in visitor.texts(USER)[0]
    visitor.all("#new")[0].click()
    visitor.wait(lambda: not visitor.texts(USER))
    assert visitor.all("#player .vlm-empty") and visitor.all("#strip .vlm-empty")
    visitor.ask("Who are you?")
    visitor.wait_until_idle()
    assert visitor.texts(BOT)[-1].startswith("Attach a video")
