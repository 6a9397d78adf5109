"""A headless Chromium that tests talk to through a pair of pipes: no library, no port."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
_PATIENCE = 60.0
# The browser reads from descriptor 3 and answers on 4; ours may be these, or any others.
_START = """
import fcntl, os, sys
high = [fcntl.fcntl(int(a), fcntl.F_DUPFD, 32) for a in sys.argv[1:3]]
for n, given in enumerate(high, 3):
    os.dup2(given, n)
os.execv(sys.argv[3], sys.argv[3:])
"""


def executable() -> str | None:
    """The browser's path; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab; every event that it sent is kept."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._last, self._session, self._buffer = 0, None, b""
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its result."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + _PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], deadline - time.monotonic())
            assert ready, "the browser does not answer"
            part = os.read(self._from, 1 << 16)
            assert part, "the browser has ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Load a file at a width, and wait until it is there."""
        self.events.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript, as JSON has it."""
        found = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press and release a key."""
        text = {"text": "\r"} if key == "Enter" else {"text": " "} if key == " " else {}
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, **text}
        self.send("Input.dispatchKeyEvent", type="keyDown", **common)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def screenshot(self, path: Path, top: int = 0, height: int | None = None) -> None:
        """A picture of the page, as high as it is or of a part."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {
            "x": 0,
            "y": top,
            "width": size["width"],
            "height": height or size["height"] - top,
            "scale": 1,
        }
        shot = self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A tab of a browser of its own.

    Args:
        profile: an empty folder for its files.
    """
    path = executable()
    assert path is not None
    (read_end, write_end), (answer_read, answer_write) = os.pipe(), os.pipe()
    options = [
        "--headless=new",
        "--remote-debugging-pipe",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
    ]
    if os.geteuid() == 0:
        options.append("--no-sandbox")  # which does not work for root
    child = subprocess.Popen(
        [sys.executable, "-ISc", _START, str(read_end), str(answer_write), path, *options],
        pass_fds=(read_end, answer_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(read_end)
    os.close(answer_write)
    try:
        page = Page(write_end, answer_read)
        yield page
        page._session = None
        page.send("Browser.close")
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(10)
        if child.poll() is None:
            child.kill()
            child.wait()
        os.close(write_end)
        os.close(answer_read)


# What sticks out of the page, unless an element around it scrolls by itself.
WIDER = """
[...document.body.querySelectorAll("*")].filter((e) => {
  if (e.closest("svg") && e.tagName !== "svg") return false;
  const box = e.getBoundingClientRect();
  if (box.width === 0 || (box.right <= innerWidth + 0.5 && box.left >= -0.5)) return false;
  return !e.parentElement.closest(".scroll");
}).map((e) => e.outerHTML.slice(0, 90))
"""
CUT = """
[...document.querySelectorAll("figure.panel, .facts div, figcaption, p, li, dd")]
  .filter((e) => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline")
  .map((e) => e.outerHTML.slice(0, 90))
"""
# Text of a plot beyond its edges would not be seen.
OUTSIDE = """
[...document.querySelectorAll("svg.plot text")].filter((e) => {
  const own = e.getBoundingClientRect(), all = e.closest("svg").getBoundingClientRect();
  return own.left < all.left - 2 || own.right > all.right + 2 || own.bottom > all.bottom + 2;
}).map((e) => e.textContent)
"""
COLOURS = """
[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
 getComputedStyle(document.querySelector("svg.plot text")).fill]
"""


def messages(tab) -> list[dict]:
    named = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    return [event for event in tab.events if event["method"] in named]


def check_page(tab: Page, path: Path, width: int, dark: bool) -> None:
    """Open a page: it asks for nothing, says nothing, fits, and has the reader's colours."""
    tab.open(path, width, dark=dark)
    tab.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert tab.run("document.documentElement.scrollWidth") == width
    assert tab.run(WIDER) == [] and tab.run(CUT) == [] and tab.run(OUTSIDE) == []
    back, text, ink = tab.run(COLOURS)
    assert (sum(map(int, back[4:-1].split(","))) < 200) == dark
    assert (sum(map(int, text[4:-1].split(","))) > 500) == dark
    assert ink.startswith("rgb(") and ink not in ("rgb(0, 0, 0)", back)
    assert messages(tab) == []
    asked = [
        event["params"]["request"]["url"]
        for event in tab.events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
