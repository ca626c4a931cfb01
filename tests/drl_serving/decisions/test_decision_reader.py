"""From a decision back to what taught its model; the live feed; callers that keep the history."""

import json
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litestar.testing import TestClient

from drl_core.policy import features
from drl_core.policy.actions import Action
from drl_core.release.signing_keys import signing_key
from drl_core.settings import Serving, Settings
from drl_core.telemetry.event import validate_event
from drl_serving.app import Service
from drl_serving.decisions.engine.action_selection import in_share
from drl_serving.decisions.state.episode_store import EpisodeKey, database_key


def event(step: int, episode: object = "e", **fields: Any) -> dict[str, Any]:
    return {"sandbox_id": "s", "episode_id": episode, "step": step, "syscall_count": 10, **fields}


@pytest.fixture
def client(publisher: Any, postgres_url: str) -> Iterator[Any]:
    """A service with a database, and a model that names what taught it."""
    publisher.publish(
        "v1",
        dagster_run_id="run-7",
        batch_partitions=["00000001-aa", "00000002-bb"],
        checkpoint_sha256="c" * 64,
        git_commit="abc123",
    )
    configured = Settings(home=publisher.settings.home, database_url=postgres_url)
    with TestClient(Service(configured).gateway) as client:
        yield client


def until(holds: Any, seconds: float = 30.0) -> Any:
    """What `holds` gives once it is true."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return found


def test_lineage_leads_from_a_decision_to_the_batches(client: Any) -> None:
    made = client.post("/v1/decisions", json=[event(0), event(1, bytes_sent=4e6)]).json()[1]
    path = f"/v1/decisions/{made['decision_id']}"
    at_once = client.get(f"{path}/lineage").json()
    assert at_once["decision"] == made
    assert at_once["model"]["dagster_run_id"] == "run-7"
    assert at_once["model"]["checkpoint_sha256"] == "c" * 64
    assert at_once["model"]["batch_partitions"] == ["00000001-aa", "00000002-bb"]
    window = {one["name"]: one["value"] for one in at_once["window"]}
    assert (window["bytes_sent"], window["cpu_usage"]) == (4e6, None)
    until(lambda: len(items(client)) == 2)
    assert made in [one["decision"] for one in items(client)]
    assert client.get(path).json()["decision"] == made
    inputs = [*(one["value"] for one in at_once["window"]), *at_once["carry"]]
    row = np.array([np.nan if value is None else value for value in inputs])
    answer = client.post(
        "/v1/decisions/rows",
        content=row.astype("<f8").tobytes(),
        headers={"Content-Type": "application/octet-stream"},
    )
    q_values = np.frombuffer(answer.content)[1:6]  # the logged inputs make the same decision again
    np.testing.assert_allclose(q_values, made["q_values"], atol=1e-6)


def items(client: Any, **query: Any) -> Any:
    return client.get("/v1/decisions/log", params=query).json()["items"]


def test_an_unknown_decision_is_a_404_that_says_why(client: Any) -> None:
    answer = client.get(f"/v1/decisions/{uuid.uuid4()}/lineage")
    assert answer.status_code == 404
    assert "decision_log_share" in answer.json()["next"]
    assert client.get("/v1/decisions/not-a-uuid").status_code == 404


def test_pages_follow_each_other_and_filter(client: Any) -> None:
    client.post("/v1/decisions", json=[event(n, "paged") for n in range(5)])
    query = {"episode_id": "paged", "limit": 2}
    until(
        lambda: (
            len(client.get("/v1/decisions/log", params={**query, "limit": 9}).json()["items"]) == 5
        )
    )
    steps: list[int] = []
    cursor: str | None = None
    while True:
        asked = query if cursor is None else {**query, "cursor": cursor}
        page = client.get("/v1/decisions/log", params=asked).json()
        steps += [one["decision"]["step"] for one in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert sorted(steps) == list(range(5))
    assert client.get("/v1/decisions/log", params={"cursor": "x"}).status_code == 400
    assert items(client, sandbox_id="none") == []


def test_a_share_of_the_episodes_is_logged_whole(publisher: Any, postgres_url: str) -> None:
    publisher.publish("v1")
    serving = Serving(decision_log_share=0.5)
    configured = Settings(home=publisher.settings.home, database_url=postgres_url, serving=serving)
    names = [f"share-{n}" for n in range(40)]
    kept = {n for n in names if in_share(database_key(("s", n)), 0.5, 1)}
    assert 5 < len(kept) < 35
    with TestClient(Service(configured).gateway) as client:
        client.post("/v1/decisions", json=[event(n, name) for name in names for n in range(2)])
        seen: set[str] = set()
        until(lambda: seen.update(logged(client)) or len(seen) >= 2 * len(kept))
        time.sleep(0.5)
        seen.update(logged(client))
    assert seen == {f"{name} {n}" for name in kept for n in range(2)}


def logged(client: Any) -> list[str]:
    made = [one["decision"] for one in items(client, limit=1000)]
    return [f"{one['episode_id']} {one['step']}" for one in made if "share-" in one["episode_id"]]


@pytest.mark.integration
def test_the_live_feed_has_every_workers_decisions(publisher: Any, start_service: Any) -> None:
    publisher.publish("v1")
    with start_service(publisher.settings.home_path, DRL_SERVING__WORKERS="2") as service:
        got: list[dict[str, Any]] = []
        opened = threading.Event()

        def follow() -> None:
            url = f"{service.client.base_url}/v1/decisions/live"
            with httpx.stream("GET", url, timeout=30) as feed:
                assert feed.headers["content-type"].startswith("text/event-stream")
                for line in feed.iter_lines():
                    opened.set()
                    if line.startswith("data: {"):
                        got.append(json.loads(line[5:]))
                    if len(got) == 20:
                        return

        reader = threading.Thread(target=follow, daemon=True)
        reader.start()
        assert opened.wait(20)
        for n in range(20):  # each on a connection of its own
            httpx.post(f"{service.client.base_url}/v1/decisions", json=event(0, f"live-{n}"))
        reader.join(30)
        assert [one["decision"]["episode_id"] for one in got] == [f"live-{n}" for n in range(20)]


episodes = st.lists(
    st.fixed_dictionaries(
        {
            "cpu_usage": st.none() | st.floats(0, 800),
            "bytes_sent": st.none() | st.floats(0, 1e12),
            "window_s": st.floats(0.01, 100),
            "isolation_level": st.integers(0, 3),
        }
    ),
    min_size=1,
    max_size=6,
)


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(episode=episodes)
def test_a_carry_of_the_caller_gives_the_decisions_of_the_service(
    plain: Any, episode: list[dict[str, Any]]
) -> None:
    name = str(uuid.uuid4())
    events = [event(n, name, **fields) for n, fields in enumerate(episode)]
    kept = plain.post("/v1/decisions", json=events).json()
    carry = None
    rows = []
    for sent, expected in zip(events, kept, strict=True):
        body = {"event": sent} if carry is None else {"event": sent, "carry": carry}
        window = features.window(validate_event(sent))
        rows.append(np.concatenate((window, np.zeros(14) if carry is None else carry)))
        (answer,) = plain.post("/v1/decisions/carried", json=body).json()
        assert answer["decision"]["action"] == expected["action"]
        np.testing.assert_allclose(answer["decision"]["q_values"], expected["q_values"], atol=1e-5)
        carry = answer["carry"]
    raw = plain.post(
        "/v1/decisions/rows",
        content=np.stack(rows).astype("<f8").tobytes(),
        headers={"Content-Type": "application/octet-stream"},
    )
    assert raw.headers["x-model-version"] == "v1"
    table = np.frombuffer(raw.content).reshape(len(rows), 20)
    assert table[:, 0].tolist() == [one["action"] for one in kept]
    np.testing.assert_allclose(table[-1, 6:], carry, rtol=1e-9)


@pytest.fixture
def plain(publisher: Any) -> Iterator[Any]:
    """A service without a database."""
    publisher.publish("v1")
    with TestClient(Service(publisher.settings).gateway) as client:
        yield client


def test_a_history_that_misses_steps_is_never_decided(plain: Any) -> None:
    first = plain.post("/v1/decisions/carried", json={"event": event(0)}).json()[0]
    for body in (
        {"event": event(1)},
        {"event": event(2), "carry": first["carry"]},
        {"event": event(0), "carry": first["carry"]},
    ):
        answer = plain.post("/v1/decisions/carried", json=body)
        assert answer.status_code == 409, answer.text
        assert answer.json()["field"] == "carry"
        assert answer.json()["next"]
    torn = {"event": event(1), "carry": [*first["carry"][:-1], -1.0]}
    assert plain.post("/v1/decisions/carried", json=torn).status_code == 400
    octets = {"Content-Type": "application/octet-stream"}
    for content in (b"", b"\0" * 100, np.full(28, np.nan).tobytes(), np.full(28, 1e300).tobytes()):
        answer = plain.post("/v1/decisions/rows", content=content, headers=octets)
        assert answer.status_code == 400, answer.text


def test_a_challenger_shadows_and_decides_its_share(publisher: Any) -> None:
    publisher.publish("v1")
    offset: Any = np.array([0.0, 0.0, 0.0, 100.0, 0.0])  # it always prefers quarantine
    key = signing_key(publisher.settings.keys_path)
    publisher.store.stage(publisher.model(offset), publisher.manifest("v2", offset), key)
    serving = Serving(challenger="v2", canary_share=0.5)
    with TestClient(
        Service(Settings(home=publisher.settings.home, serving=serving)).gateway
    ) as client:
        until(lambda: decided_by(client) == {"champion", "challenger"})
        answers = client.post(
            "/v1/decisions", json=[event(n, f"c{m}") for m in range(60) for n in range(2)]
        ).json()
        roles: dict[EpisodeKey, set[str]] = {}
        for one in answers:
            roles.setdefault((one["sandbox_id"], one["episode_id"]), set()).add(one["role"])
            assert one["model_version"] == {"champion": "v1", "challenger": "v2"}[one["role"]]
            if one["role"] == "challenger":
                assert one["action"] == Action.QUARANTINE_FILE
        assert all(len(found) == 1 for found in roles.values())  # an episode keeps its model
        share = sum(found == {"challenger"} for found in roles.values()) / len(roles)
        assert 0.25 < share < 0.75
        counted = until(lambda: compared(client, 120))
        assert any('role="champion"' in line for line in counted)
        assert any('other_action="quarantine_file"' in line for line in counted)


def decided_by(client: Any) -> set[str]:
    sent = [event(0, str(uuid.uuid4())) for _ in range(20)]
    return {one["role"] for one in client.post("/v1/decisions", json=sent).json()}


def compared(client: Any, least: int) -> list[str]:
    text = client.get("/metrics").text.splitlines()
    lines = [line for line in text if line.startswith("drl_shadow_comparisons_total{")]
    return lines if sum(float(line.split()[-1]) for line in lines) >= least else []
