"""Patterns over HTTP, with a real database that is down, comes, goes, and comes back."""

import datetime as dt
import socket
from pathlib import Path
from typing import Any

import pytest
from litestar import Litestar
from litestar.testing import TestClient

from drl_cli.postgres import EmbeddedPostgres
from drl_core.migrations import migrate
from drl_core.patterns import AttackPattern, upsert
from drl_core.settings import Settings
from drl_serving.app import create_app

NOON = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)


def pattern(step: int, attack_type: str = "ransomware") -> AttackPattern:
    return AttackPattern(
        sandbox_id="s",
        episode_id="e",
        step=step,
        model_version="v1",
        features=[step / 10] * 30,
        action=2,
        reward=1.0,
        attack_type=attack_type,
        confidence=0.9,
        time=NOON + dt.timedelta(minutes=step),
    )


def test_without_a_database_the_setting_is_named(client: TestClient[Litestar]) -> None:
    answer = client.get("/v1/patterns")
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert answer.json()["field"] == "database_url"
    assert "DRL_DATABASE_URL" in answer.json()["next"]


def test_search_by_type_time_and_features(postgres_url: str, tmp_path: Path) -> None:
    upsert(postgres_url, [*(pattern(n) for n in range(5)), pattern(5, "beacon")])
    app = create_app(Settings(home=str(tmp_path), database_url=postgres_url))
    with TestClient(app) as client:
        found = client.get("/v1/patterns", params={"attack_type": "ransomware", "limit": 2})
        assert found.status_code == 200
        assert [p["step"] for p in found.json()] == [4, 3]
        found = client.get("/v1/patterns", params={"attack_type": "ransomware", "offset": 4})
        assert [p["step"] for p in found.json()] == [0]
        between = {"since": "2026-11-22T12:01:00Z", "until": "2026-11-22T12:03:00Z"}
        assert [p["step"] for p in client.get("/v1/patterns", params=between).json()] == [2, 1]
        query = {"features": [0.31] * 30, "limit": 2}
        near = client.post("/v1/patterns/search", json=query).json()
        assert [n["pattern"]["step"] for n in near] == [3, 4]
        assert near[0]["distance"] == pytest.approx(0.01 * 30**0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"offset": "-1"}, "offset"),
        ({"offset": "99999999999999999999"}, "offset"),
        ({"since": "yesterday"}, "since"),
        ({"until": "2026-11-22T12:00:00"}, "until"),
        ({"attack_type": "a\0b"}, "attack_type"),
    ],
)
def test_a_wrong_parameter_is_named(
    client: TestClient[Litestar], parameters: dict[str, str], field: str
) -> None:
    answer = client.get("/v1/patterns", params=parameters)
    assert answer.status_code == 400
    assert answer.json()["field"] == field


@pytest.mark.parametrize(
    "body", [{}, [], {"features": [0.1] * 29}, {"features": [2] * 30}, {"features": [None] * 30}]
)
def test_a_wrong_state_is_named(client: TestClient[Litestar], body: Any) -> None:
    answer = client.post("/v1/patterns/search", json=body)
    assert answer.status_code == 400
    assert answer.json()["field"]
    assert client.post("/v1/patterns/search", content=b"{}").status_code == 415


@pytest.mark.integration
def test_decisions_go_on_while_the_database_is_away(
    start_service: Any, publisher: Any, tmp_path: Path
) -> None:
    publisher.publish("v1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = EmbeddedPostgres(tmp_path / "postgres", durable=False, port=port)
    url = server.start()
    migrate(url)
    upsert(url, [pattern(1)])
    server.stop()
    step = iter(range(100))
    with start_service(publisher.settings.home_path, DRL_DATABASE_URL=url) as service:

        def decides() -> bool:
            event = {"episode_id": "e", "step": next(step)}
            return service.client.post("/v1/decisions", json=event).status_code == 200

        def finds() -> int:
            answer = service.client.get("/v1/patterns")
            if answer.status_code != 200:
                assert answer.status_code == 503
                assert answer.headers["retry-after"]
                assert answer.json()["type"] == "urn:drl:problem:database-unavailable"
                return 0
            return len(answer.json())

        assert (finds(), decides()) == (0, True), "started without a database"
        for _ in range(2):
            try:
                assert server.start() == url
                service.wait_until(lambda: finds() == 1)
                assert decides()
            finally:
                server.stop()
            assert (finds(), decides()) == (0, True)
