"""Who did what: nothing lost, nothing torn, nothing secret, read back in pages."""

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from litestar import Litestar
from litestar.di import Provide
from litestar.testing import TestClient
from litestar.types import Receive, Scope, Send

from drl_serving.access.principal import ANONYMOUS, Principal
from drl_serving.audit import log
from drl_serving.audit.controller import AuditController
from drl_serving.audit.log import Audit
from drl_serving.audit.refusals import NOTES_AT_ONCE, Refusals
from drl_serving.http.cursor import CursorError
from drl_serving.http.problems import answer
from drl_serving.observability import tracing
from drl_serving.observability.metrics import Metrics

_WRITER = """
import sys
from pathlib import Path
from drl_serving.audit.log import Audit
with Audit(Path(sys.argv[1])) as audit:
    for n in range(500):
        audit.record("patterns.read", actor=f"key:{sys.argv[2]}", target=str(n) + "x" * 300)
"""


def lines(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def test_every_record_of_several_processes_is_whole_and_in_order(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path), name]) for name in "ab"
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    for name in "ab":
        kept = [r["target"] for r in lines(tmp_path) if r["actor"] == f"key:{name}"]
        assert kept == [str(n) + "x" * 300 for n in range(500)]


@pytest.mark.property(44)
def test_a_record_has_its_trace_and_no_secret(tmp_path: Path) -> None:
    trace = tracing.begin([])
    with Audit(tmp_path / "audit") as audit:
        secret = "drl_01234567_" + "s" * 43
        audit.record("keys.created", actor="cli:uid-0", target=secret, client="192.0.2.1")
        audit.record("model.loaded", actor="service", target="/home/alice/m", result="ok")
    first, second = lines(tmp_path / "audit")
    assert first["target"] == "drl_01234567_***"
    assert first["trace_id"] == trace.trace_id
    assert first["client"] == "192.0.2.1"
    assert second["target"] == "/home/USER/m"
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "audit").iterdir()}
    assert modes == {0o600}


def test_a_disk_that_refuses_for_a_while_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "RETRY_S", 0.02)
    folder = tmp_path / "audit"
    with Audit(folder) as audit:
        folder.rmdir()
        folder.write_text("in the way")
        for n in range(20):
            audit.record("patterns.read", actor="a", target=str(n))
        folder.unlink()
        folder.mkdir()
        while len(lines(folder)) < 20:
            pass
    assert [record["target"] for record in lines(folder)] == [str(n) for n in range(20)]


def test_what_finds_no_place_goes_to_the_services_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "audit"
    audit = Audit(folder)
    folder.rmdir()
    folder.write_text("in the way")
    audit.record("patterns.read", actor="a", target="lost-on-disk")
    audit.close()
    audit.record("patterns.read", actor="a", target="too-late")
    told = caplog.text + "".join(capsys.readouterr())
    assert "lost-on-disk" in told
    assert "too-late" in told


def test_a_torn_line_does_not_take_the_next_one_with_it(tmp_path: Path) -> None:
    day = dt.datetime.now(dt.UTC).date().isoformat()
    with Audit(tmp_path) as audit:
        audit.record("a", actor="x")
    with (tmp_path / f"{day}.jsonl").open("ab") as file:
        file.write(b'{"time": "2026\n')
    with Audit(tmp_path) as audit:
        audit.record("b", actor="x")
    assert [record.action for record in log.read(tmp_path).records] == ["b", "a"]


def test_pages_are_newest_first_and_complete(tmp_path: Path) -> None:
    for day in range(1, 4):
        records = [
            {
                "time": f"2026-11-0{day}T00:00:0{n}Z",
                "actor": "ab"[n % 2],
                "action": "keys.created" if n == 4 else "patterns.read",
                "target": f"{day}-{n}",
            }
            for n in range(5)
        ]
        text = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"2026-11-0{day}.jsonl").write_text(text)
    every = [f"{day}-{n}" for day in (3, 2, 1) for n in (4, 3, 2, 1, 0)]
    seen: list[str] = []
    cursor = None
    while True:
        page = log.read(tmp_path, before=cursor, limit=4)
        seen += [record.target for record in page.records]
        cursor = page.next
        if cursor is None:
            break
    assert seen == every
    since, until = (dt.datetime(2026, 11, day, tzinfo=dt.UTC) for day in (2, 3))
    middle = log.read(tmp_path, since=since, until=until, actor="a").records
    assert [record.target for record in middle] == ["2-4", "2-2", "2-0"]
    assert {r.target for r in log.read(tmp_path, action="keys").records} == {"1-4", "2-4", "3-4"}
    for cursor in ("x", "2026-11-01", "2026-13-01:1", "2026-11-01:x"):
        with pytest.raises(CursorError):
            log.read(tmp_path, before=cursor)


@pytest.mark.property(44)
def test_only_an_administrator_reads_the_log_over_http(tmp_path: Path) -> None:
    with Audit(tmp_path) as audit:
        audit.record("keys.revoked", actor="cli:uid-0", target="key:1")
        app = Litestar(
            [AuditController],
            dependencies={"audit": Provide(lambda: audit, sync_to_thread=False)},
            exception_handlers={Exception: answer},
        )
        principal = ANONYMOUS

        async def front(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                scope["state"] = {"principal": principal}
            await app(scope, receive, send)

        with TestClient(front) as client:
            while not client.get("/v1/audit").json()["records"]:
                pass
            (record,) = client.get("/v1/audit", params={"action": "keys"}).json()["records"]
            assert record["target"] == "key:1"
            for bad in ({"before": "x"}, {"since": "2026-11-22T00:00:00"}, {"limit": "0"}):
                response = client.get("/v1/audit", params=bad)
                assert response.status_code == 400
                assert response.json()["field"] in bad
            principal = Principal("key:2", "key", frozenset({"decide", "patterns"}))
            assert client.get("/v1/audit").status_code == 403


def test_refusals_are_counted_and_a_flood_of_them_fills_no_disk(tmp_path: Path) -> None:
    metrics = Metrics()
    with Audit(tmp_path) as audit:
        refusals = Refusals(metrics, audit)
        for _ in range(100):
            refusals("credentials", "anonymous", "192.0.2.1")
        refusals("scope", "key:1", "192.0.2.1")
    text = metrics.exposition().decode()
    assert 'drl_access_refused_total{reason="credentials"} 100.0' in text
    assert 'drl_access_refused_total{reason="scope"} 1.0' in text
    noted = [record["result"] for record in lines(tmp_path)]
    assert noted == ["credentials"] * NOTES_AT_ONCE + ["scope"]
