"""Take docs/images/demo.png: the real page with a real model, asked about an example clip in headless Chromium.

    python scripts/screenshot_demo.py                       # the first example, with smol
    python scripts/screenshot_demo.py --model nano --example 2 --ask "What shapes are there?" --ask "How many shapes are there?"

Needs chromium, chromedriver and `pip install selenium`.
"""

from __future__ import annotations

import argparse
import base64
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from demo.app import build, launch_options
from demo.clips import EXAMPLES
from vlm.presets import load

ROOT = Path(__file__).resolve().parent.parent
FLAGS = (
    "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync",
)  # fmt: skip


@contextmanager
def chromium(width: int, height: int, scale: float) -> Iterator[Any]:
    """A headless browser whose page is ``width x height`` CSS pixels, drawn ``scale`` times as fine."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("chromium-browser") or ""
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            yield browser
        finally:
            browser.quit()


class Page:
    """The few things done on the page."""

    def __init__(self, browser: Any, url: str, patience: float) -> None:
        self.browser, self.patience = browser, patience
        browser.get(url)
        self.wait(lambda: self.all("#box textarea") and self.all("#examples button"))

    def all(self, selector: str) -> list[Any]:
        """Elements that match."""
        return list(self.browser.find_elements("css selector", selector))

    def wait(self, condition: Callable[[], Any]) -> None:
        """Until ``condition`` holds."""
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.browser, self.patience).until(lambda _: condition())

    def answered(self, count: int) -> None:
        """Until ``count`` answers are complete."""
        self.wait(lambda: len(self.all("#chat .user-row .message-content")) == count)
        self.wait(lambda: self.all(".vlm-usage") and self.all("#box .submit-button"))

    def attach(self, clip: Path) -> None:
        """Give a clip with the next question."""
        self.all("#box input[type=file]")[0].send_keys(str(clip))
        self.wait(lambda: self.browser.execute_script("return !!document.querySelector('#box [class*=thumbnail]')"))

    def ask(self, question: str) -> None:
        """Type a question."""
        from selenium.webdriver.common.keys import Keys

        count = len(self.all("#chat .user-row .message-content"))
        self.all("#box textarea")[0].send_keys(question, Keys.ENTER)
        self.answered(count + 1)

    def go_to_answer(self) -> None:
        """Click the middle frame of the answer, or the middle one of all."""
        frames = self.all(".vlm-marked") or self.all(".vlm-frame")
        frames[len(frames) // 2].click()
        video = "document.querySelector('.vlm-player video')"
        self.wait(lambda: self.browser.execute_script(f"return !{video}.seeking && {video}.readyState >= 2"))
        self.browser.execute_script("document.activeElement.blur()")

    def picture(self, colours: int) -> Image.Image:
        """The page as it is, with few enough colours for a small file."""
        shot = self.browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
        image = Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB")
        if not colours:
            return image
        palette = image.quantize(colours, method=Image.Quantize.MEDIANCUT)
        return image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smol", help="smol, nano, a folder or a hub id")
    parser.add_argument(
        "--example", type=int, default=0, choices=range(len(EXAMPLES)), help="which button, or whose clip"
    )
    parser.add_argument("--ask", action="append", default=[], help="ask this instead; may be repeated")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/images/demo.png")
    parser.add_argument("--size", type=int, nargs=2, default=(1280, 900), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--scale", type=float, default=1.5, help="pixels of the picture per pixel of the page")
    parser.add_argument("--colours", type=int, default=256, help="of the PNG; 0 keeps them all")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds to wait for an answer")
    args = parser.parse_args()
    page = build(load(args.model))
    _, url, _ = page.launch(**launch_options(), prevent_thread_lock=True, quiet=True)
    try:
        with chromium(args.size[0], args.size[1], args.scale) as browser:
            visitor = Page(browser, url, args.patience)
            if args.ask:
                visitor.attach(EXAMPLES[args.example].path)
            else:
                visitor.all("#examples button")[args.example].click()
                visitor.answered(1)
            for question in args.ask:
                visitor.ask(question)
            visitor.go_to_answer()
            args.output.parent.mkdir(parents=True, exist_ok=True)
            visitor.picture(args.colours).save(args.output, optimize=True)
    finally:
        page.close()
    print(f"{args.output} ({args.output.stat().st_size / 1e3:.0f} kB)")


if __name__ == "__main__":
    main()
