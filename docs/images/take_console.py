"""Take the pictures of the console again, from the real service in headless Chromium.

With `drl up` running after `drl demo`, `python docs/images/take_console.py KEY` signs in with an
API key of every scope (`drl keys create` makes one), has the service decide episodes of the
recorded sample, and writes `console-*.png` beside this file. DRL_SERVING__PORT says where the
service is; Chromium is Debian's package `chromium`.
"""

import gzip
import json
import os
import shutil
import sys
import time
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
SAMPLE = HERE.parents[1] / "samples" / "recorded" / "telemetry.jsonl.gz"
EPISODES = 24
SIZE = {"width": 1280, "height": 860}


def decide(url: str, key: str) -> dict[str, Any]:
    """Send the sample's first episodes; gives the last decision that was not to watch on."""
    lines = gzip.decompress(SAMPLE.read_bytes()).splitlines()
    found: dict[str, Any] = {}
    started = int(time.time())
    episodes = groupby(map(json.loads, lines), key=lambda event: event["episode_id"])
    with httpx.Client(base_url=url, headers={"X-API-Key": key}, timeout=60) as client:
        for number, (name, events) in zip(range(EPISODES), episodes, strict=False):
            sent = [{**event, "episode_id": f"{name}-{started}"} for event in events]
            answer = client.post("/v1/decisions", json=sent).raise_for_status()
            acted = [made for made in answer.json() if made["action"]]
            found = acted[-1] if acted else found or answer.json()[-1]
            print(f"episode {number}: {len(sent)} windows", file=sys.stderr)
    return found


def shoot(page: Page, name: str, path: str, *, whole: bool = False) -> None:
    """One picture of a page."""
    page.goto(path)
    page.wait_for_timeout(500)
    page.screenshot(path=HERE / f"console-{name}.png", full_page=whole)


def take(url: str, key: str) -> None:
    """All pictures."""
    made = decide(url, key)
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(base_url=url, viewport=SIZE)
        page.goto("/console")
        if page.url.endswith("/login"):
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Sign in").click()
            page.get_by_role("heading", name="Overview").wait_for()
        shoot(page, "overview", "/console", whole=True)
        shoot(page, "decisions", "/console/decisions")
        shoot(page, "decision", f"/console/decisions/{made['decision_id']}")
        shoot(page, "model", "/console/model", whole=True)
        shoot(page, "shadow", "/console/shadow")
        shoot(page, "patterns", f"/console/patterns?near={made['decision_id']}")
        browser.close()


if __name__ == "__main__":
    take(f"http://127.0.0.1:{os.environ.get('DRL_SERVING__PORT', '8000')}", sys.argv[1])
