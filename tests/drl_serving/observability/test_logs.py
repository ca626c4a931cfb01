"""Logs: JSON lines from every process, without secrets, and never in a decision's way."""

import json
import logging
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from drl_core.settings import Observability
from drl_serving.observability import logs, redaction, tracing

KEY = "drl_01234567_" + "Ab-_" * 10 + "xyz"
TOKEN = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"  # noqa: S105

_WRITER = """
import sys, logging
from pathlib import Path
from drl_core.settings import Observability
from drl_serving.observability import logs
kept = logs.configure(
    Observability(log_file="log.jsonl", log_max_bytes=20000, log_keep=50), Path(sys.argv[1])
)
for n in range(200):
    logging.getLogger("x").info("%s %d %s", sys.argv[2], n, "." * 100)
kept.close()
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield tmp_path
    structlog.reset_defaults()
    root.handlers[:] = before
    root.setLevel(level)


def written(home: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (home / "log.jsonl").read_text().splitlines()]


@pytest.mark.property(44)
def test_a_line_has_its_trace_and_neither_secrets_nor_users(home: Path) -> None:
    kept = logs.configure(Observability(log_file="log.jsonl"), home)
    trace = tracing.begin([])
    log = structlog.stdlib.get_logger("drl_serving.test")
    log.info(
        "hello", key=KEY, password="hush", nested={"authorization": "hush", "path": "/home/bob/x"}
    )
    logging.getLogger("uvicorn.error").warning("Bearer %s from C:\\Users\\Bob Ross\\a.exe", TOKEN)
    log.error("failed", exc_info=ValueError(f"postgresql://drl:hush@db/drl and {KEY}"))
    kept.close()
    text = (home / "log.jsonl").read_text()
    for secret in ("hush", KEY[13:], TOKEN, "bob", "Bob"):
        assert secret not in text
    lines = written(home)
    assert lines[0]["event"] == "hello"
    assert {line["trace_id"] for line in lines} == {trace.trace_id}
    assert {line["level"] for line in lines} == {"info", "warning", "error"}
    assert lines[1]["logger"] == "uvicorn.error"
    assert "ValueError" in lines[2]["exception"]
    assert all({"timestamp", "logger", "pid"} <= line.keys() for line in lines)


def test_the_level_changes_while_running(home: Path) -> None:
    kept = logs.configure(Observability(log_file="log.jsonl", log_level="warning"), home)
    log = structlog.stdlib.get_logger("x")
    log.info("before")
    kept.set_level("debug")
    log.debug("after")
    kept.set_level("error")
    log.warning("not")
    kept.close()
    assert [line["event"] for line in written(home)] == ["after"]


def test_several_processes_rotate_one_file_and_lose_no_line(home: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(home), name], stdout=subprocess.DEVNULL
        )
        for name in "ab"
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    files = sorted(home.glob("log.jsonl*"))
    assert len(files) > 2
    lines = [json.loads(line)["event"] for f in files for line in f.read_text().splitlines()]
    assert sorted(lines) == sorted(f"{name} {n} {'.' * 100}" for name in "ab" for n in range(200))
    assert max(f.stat().st_size for f in files) < 30_000, "about what is configured"


def test_a_full_queue_drops_and_counts_instead_of_waiting() -> None:
    waiting: queue.Queue[logging.LogRecord | None] = queue.Queue(2)
    handler = logs.BoundedQueueHandler(waiting)
    logger = logging.Logger("x")
    logger.addHandler(handler)
    for _ in range(10):
        logger.warning("x")
    assert (waiting.qsize(), handler.dropped) == (2, 8)


@pytest.mark.property(44)
def test_a_line_that_cannot_be_written_is_not_shown_in_clear(home: Path) -> None:
    script = (
        "import logging, os, sys\n"
        "from drl_serving.observability import logs\n"
        "sys.stdout = open('/dev/full', 'w')\n"
        "kept = logs.configure()\n"
        f"logging.getLogger('x').warning({KEY!r})\n"
        "kept.close()\n"
        "os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert "was not written: OSError" in done.stderr
    assert KEY[13:] not in done.stderr


@pytest.mark.property(44)
@given(
    before=st.text(st.characters(categories=["L", "Z", "P"]), max_size=20),
    secret=st.from_regex(r"[A-Za-z0-9_-]{43}", fullmatch=True),
)
def test_a_key_is_taken_out_of_any_text(before: str, secret: str) -> None:
    clean = redaction.text(f"{before} drl_0123abcd_{secret} after")
    assert secret not in clean
    assert clean.endswith("after") or "USER" in clean
    assert secret not in json.dumps(redaction.value({before: [f"x=drl_0123abcd_{secret}"]}))


def test_what_is_no_secret_stays() -> None:
    for text in ("patterns.read", "no-model", "2026-11-23T04:13:56Z", "/v1/decisions 200", "a:b@c"):
        assert redaction.text(text) == text
    assert redaction.value({"n": 1, "x": None, "l": [1.5, True]}) == {
        "n": 1, "x": None, "l": [1.5, True],
    }  # fmt: skip
