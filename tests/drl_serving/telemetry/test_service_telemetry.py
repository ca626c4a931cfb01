"""POST /v1/telemetry: durable before 202, refused records named and kept, a full disk said."""

import contextlib
import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litestar import Litestar
from litestar.testing import TestClient

from drl_core.settings import Serving, Settings
from drl_core.telemetry.event import Event
from drl_core.telemetry.landing import LandingZone
from drl_serving.app import create_app

Client = TestClient[Litestar]
LINES = {"Content-Type": "application/x-ndjson"}


def event(step: int, **fields: Any) -> dict[str, Any]:
    return {"episode_id": "e", "step": step, "syscall_count": 10, **fields}


def landed(zone: LandingZone) -> list[Event]:
    zone.seal()
    keys = zone.keys()
    return [e for key in keys for part in zone.read(key) for e in part]


@pytest.fixture
def zone(publisher: Any) -> LandingZone:
    return LandingZone(publisher.settings.landing_path)


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (json.dumps(event(0)), {"Content-Type": "application/json"}),
        (json.dumps([event(0)]), {"Content-Type": "application/json; charset=utf-8"}),
        (json.dumps(event(0)) + "\n\n", LINES),
        (json.dumps(event(0)), {"Content-Type": "application/jsonl"}),
    ],
)
def test_each_form_is_landed(
    client: Client, zone: LandingZone, content: str, headers: dict[str, str]
) -> None:
    answer = client.post("/v1/telemetry", content=content, headers=headers)
    assert answer.status_code == 202
    assert answer.json() == {"accepted": 1, "refused": 0, "refusals": []}
    assert [e.step for e in landed(zone)] == [0]
    assert "drl_landed_events_total 1.0" in client.get("/metrics").text


@pytest.mark.property(3)
def test_refused_records_are_named_and_kept_and_stop_nothing(
    client: Client, zone: LandingZone
) -> None:
    good, bad = json.dumps(event(0)), json.dumps(event(1, cpu_usage=-1))
    body = f"{good}\n{bad}\nrubbish\n{json.dumps(event(2))}\n"
    answer = client.post("/v1/telemetry", content=body, headers=LINES)
    assert answer.status_code == 202
    assert (answer.json()["accepted"], answer.json()["refused"]) == (2, 2)
    refusals = answer.json()["refusals"]
    assert [(r["record"], r["field"]) for r in refusals] == [(1, "cpu_usage"), (2, "$")]
    assert [e.step for e in landed(zone)] == [0, 2]
    letters = zone.dead_letters()
    assert [letter.payload for letter in letters] == [bad, "rubbish"]
    listed = client.post("/v1/telemetry", json=[event(0), event(1, stage="late"), 5])
    assert [(r["record"], r["field"]) for r in listed.json()["refusals"]] == [
        (1, "stage"),
        (2, "$"),
    ]
    assert "drl_dead_letters_total 4.0" in client.get("/metrics").text


@pytest.mark.parametrize("body", [b'{"episode_id": 1, "step"', b"[1, 2", b"[null]", b"\xff\xfe"])
def test_nothing_but_rubbish_is_unprocessable(
    client: Client, zone: LandingZone, body: bytes
) -> None:
    answer = client.post(
        "/v1/telemetry", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["accepted"] == 0
    assert answer.json()["field"]
    assert len(zone.dead_letters()) == 1
    assert not landed(zone)


@pytest.mark.parametrize("body", [b"", b"  \n", b"[]"])
def test_an_empty_body_is_refused(client: Client, body: bytes) -> None:
    for kind in ("application/json", "application/x-ndjson"):
        answer = client.post("/v1/telemetry", content=body, headers={"Content-Type": kind})
        expected = 422 if (body, kind) == (b"[]", "application/x-ndjson") else 400
        assert answer.status_code == expected
        assert answer.headers["content-type"] == "application/problem+json"


def test_limits_and_content_type_are_enforced(publisher: Any) -> None:
    small = Settings(home=publisher.settings.home, serving=Serving(max_batch=2))
    with TestClient(create_app(small)) as client:
        assert client.post("/v1/telemetry", content=b"{}").status_code == 415
        assert client.post("/v1/telemetry", json=[event(n) for n in range(3)]).status_code == 413
        lines = b"".join(json.dumps(event(n)).encode() + b"\n" for n in range(3))
        assert client.post("/v1/telemetry", content=lines, headers=LINES).status_code == 413
        assert not landed(LandingZone(small.landing_path))


@pytest.mark.property(3)
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    body=st.binary(max_size=300), kind=st.sampled_from(["application/json", "application/jsonl"])
)
def test_arbitrary_bytes_never_fail(client: Client, body: bytes, kind: str) -> None:
    answer = client.post("/v1/telemetry", content=body, headers={"Content-Type": kind})
    assert answer.status_code in (400, 422), answer.text
    assert answer.json()["field"]


@pytest.mark.property(4)
@pytest.mark.integration
def test_what_was_acknowledged_survives_kill_9(start_service: Any, publisher: Any) -> None:
    acknowledged: list[int] = []
    for start, delay_s in ((0, 0.05), (10_000, 0.11), (20_000, 0.23)):
        with start_service(publisher.settings.home_path) as service:
            killer = threading.Timer(delay_s, service.process.kill)
            killer.start()
            with contextlib.suppress(httpx.TransportError):  # the kill cuts a request off
                for step in range(start, start + 10_000):
                    assert service.client.post("/v1/telemetry", json=event(step)).status_code == 202
                    acknowledged.append(step)
            killer.join()
    steps = [e.step for e in landed(LandingZone(publisher.settings.landing_path))]
    assert set(acknowledged) <= set(steps)
    assert len(steps) <= len(acknowledged) + 3, "at most the request in flight beside them"
    assert len(set(steps)) == len(steps)


def test_without_a_landing_zone_telemetry_is_refused_and_decisions_go_on(publisher: Any) -> None:
    publisher.publish("v1")
    publisher.settings.landing_path.write_text("a file where the folder should be")
    with TestClient(create_app(publisher.settings)) as client:
        answer = client.post("/v1/telemetry", json=event(0))
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        ready = client.get("/health/ready")
        assert ready.status_code == 200
        assert ready.json()["landing_writable"] is False
        assert client.post("/v1/decisions", json=event(0)).status_code == 200


def private_disk(folder: Path) -> tuple[str, ...]:
    """A command that runs another one with a real disk of 64 kB mounted at a folder."""
    folder.mkdir(parents=True)
    mount = f'mount -t tmpfs -o size=64k tmpfs "{folder}" && exec "$@"'
    wrapper = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh")
    try:
        tried = subprocess.run([*wrapper, "true"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if tried.returncode:
        pytest.skip(f"this machine allows no private mount: {tried.stderr.strip()}")
    return wrapper


@pytest.mark.integration
def test_a_full_disk_is_said_and_nothing_half_written_stays(
    start_service: Any, publisher: Any
) -> None:
    publisher.publish("v1")
    landing = publisher.settings.landing_path
    with start_service(publisher.settings.home_path, wrapper=private_disk(landing)) as service:
        inside = Path(f"/proc/{service.process.pid}/root{landing}")
        acknowledged, answer = 0, None
        for step in range(200):
            body = [event(step * 20 + n, extra={"x" * 60: 1.0}) for n in range(20)]
            answer = service.client.post("/v1/telemetry", json=body)
            if answer.status_code != 202:
                break
            acknowledged += 20
        assert answer is not None
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert answer.json()["type"] == "urn:drl:problem:landing-failed"
        segments = list((inside / "segments").iterdir())
        assert sum(len(path.read_bytes().splitlines()) for path in segments) == acknowledged > 0
        assert not [path for path in segments if path.suffix != ".jsonl"]
        ready = service.client.get("/health/ready").json()
        assert ready["status"] == "ready"
        decision = service.client.post("/v1/decisions", json=event(0))
        assert decision.status_code == 200, "decisions go on"
        for path in segments[:3]:
            path.unlink()
        assert service.client.post("/v1/telemetry", json=event(9999)).status_code == 202
