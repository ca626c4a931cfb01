"""Take the picture of the asset graph again, from the real Dagster UI in headless Chromium.

With `drl up` or `drl demo` running (DRL_UI_PORT says where), `.venv/bin/python docs/images/take.py`
writes `asset-graph.png` beside this file. Chromium is driven by its DevTools protocol over
`websockets`, which the virtual environment has; the browser itself is Debian's package `chromium`.
"""

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

WIDTH, HEIGHT = 2400, 620
WAIT_S = 60.0
ALT = 1
VIEW = {"asset-graph-direction": "horizontal", "dagster-nav-collapsed": True}
"""What the UI keeps in the browser: left to right, without the navigation's names."""
GRAPH = "document.body.innerText.includes('patterns')"
OPEN = "document.body.innerText.includes('attack_patterns')"
CLOSE_LIST = """(() => {
    const box = document.querySelector('input[placeholder^=Jump]').getBoundingClientRect();
    [...document.querySelectorAll('button')].find(button => {
        const place = button.getBoundingClientRect();
        return place.left > box.right && place.left < box.right + 60
            && place.top < box.bottom && place.bottom > box.top;
    }).click();
})()"""
"""The list of groups beside the graph."""
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--remote-debugging-port=0", f"--window-size={WIDTH},{HEIGHT}"),
)


class Page:
    """One tab of the browser, asked through its DevTools socket."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events in between are left out."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer: dict[str, Any] = json.loads(self._socket.recv(timeout=WAIT_S))
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        return self.call("Runtime.evaluate", expression=script)["result"].get("value")

    def press(self, code: str, key: str, modifiers: int) -> None:
        """Press a key."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, code=code, key=key, modifiers=modifiers)

    def wait(self, script: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + WAIT_S
        while not self.evaluate(script):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the page did not come to: {script}")
            time.sleep(0.2)


@contextmanager
def chromium() -> Iterator[Page]:
    """A headless browser with one empty page; it is gone afterwards."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        sys.exit("chromium is not installed: apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = subprocess.Popen(
            [program, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            told = Path(profile) / "DevToolsActivePort"
            deadline = time.monotonic() + WAIT_S
            while not (told.exists() and told.read_text().strip()):
                if browser.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{program} did not start")
                time.sleep(0.1)
            port = int(told.read_text().split()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                pages = [each for each in json.loads(answer.read()) if each["type"] == "page"]
            with connect(pages[0]["webSocketDebuggerUrl"], max_size=None, proxy=None) as socket:
                yield Page(socket)
        finally:
            browser.terminate()
            browser.wait(WAIT_S)


def take(ui: str) -> bytes:
    """The asset graph with every group open, as PNG."""
    with chromium() as page:
        page.call("Page.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False},
        )
        page.call("Page.navigate", url=f"{ui}/server_info")
        page.wait("document.readyState === 'complete' && location.protocol === 'http:'")
        for key, value in VIEW.items():
            page.evaluate(f"localStorage.setItem({key!r}, {json.dumps(json.dumps(value))})")
        page.call("Page.navigate", url=f"{ui}/asset-groups")
        page.wait(GRAPH)
        page.evaluate(CLOSE_LIST)
        page.press("KeyE", "e", ALT)  # expands all groups
        page.wait(OPEN)
        time.sleep(6)  # the states of the assets, and the layout's animation
        shot = page.call("Page.captureScreenshot", format="png")
        return base64.b64decode(shot["data"])


if __name__ == "__main__":
    picture = take(f"http://127.0.0.1:{os.environ.get('DRL_UI_PORT', '3000')}")
    target = Path(__file__).with_name("asset-graph.png")
    target.write_bytes(picture)
    print(f"{target}: {len(picture):,} bytes")
