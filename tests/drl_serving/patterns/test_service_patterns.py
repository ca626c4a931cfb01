"""Patterns over HTTP, with a real database that is down, comes, goes, and comes back."""

import datetime as dt
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from litestar import Litestar
from litestar.testing import TestClient

from drl_core.settings import Settings
from drl_core.storage.encryption import Keyring
from drl_core.storage.patterns import AttackPattern, upsert
from drl_serving.app import create_app

NOON = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)


def pattern(step: int, attack_type: str = "ransomware") -> AttackPattern:
    return AttackPattern(
        sandbox_id="s",
        episode_id="e",
        step=step,
        model_version="v1",
        features=[min(step / 10, 1.0)] * 30,
        action=2,
        reward=1.0,
        attack_type=attack_type,
        confidence=0.9,
        time=NOON + dt.timedelta(minutes=step),
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def patterns_client(home: Path, postgres_url: str) -> Iterator[TestClient[Any]]:
    """The application with a database."""
    settings = Settings(home=str(home), database_url=postgres_url)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def searched(patterns_client: TestClient[Litestar], postgres_url: str, home: Path) -> Any:
    """The client, and a database of nothing but six patterns."""
    keyring = Keyring(home / "keys")
    with psycopg.connect(postgres_url) as connection:
        connection.execute("TRUNCATE attack_patterns")
    upsert(postgres_url, [*(pattern(n) for n in range(5)), pattern(5, "beacon")], keyring)
    return patterns_client


def steps_of(answer: Any) -> list[int]:
    assert answer.status_code == 200, answer.text
    return [p["step"] for p in answer.json()["items"]]


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)


def as_sent(one: AttackPattern, **changes: Any) -> dict[str, Any]:
    sent: dict[str, Any] = msgspec.to_builtins(one)
    return {**sent, **changes}


def test_without_a_database_the_setting_is_named(client: TestClient[Litestar]) -> None:
    sent = client.post("/v1/patterns", json=as_sent(pattern(1)))
    for answer in (client.get("/v1/patterns"), sent):
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert answer.json()["field"] == "database_url"
        assert "DRL_DATABASE_URL" in answer.json()["next"]


def test_search_by_any_filter_with_pages(searched: TestClient[Litestar]) -> None:
    ransomware: dict[str, str | int] = {"attack_type": "ransomware", "limit": 2}
    first = searched.get("/v1/patterns", params=ransomware)
    assert steps_of(first) == [4, 3]
    second = searched.get("/v1/patterns", params={**ransomware, "cursor": first.json()["next"]})
    assert steps_of(second) == [2, 1]
    third = searched.get("/v1/patterns", params={**ransomware, "cursor": second.json()["next"]})
    assert steps_of(third) == [0]
    assert third.json()["next"] is None
    between = {"since": "2026-11-22T12:01:00Z", "until": "2026-11-22T13:03:00+01:00"}
    assert steps_of(searched.get("/v1/patterns", params=between)) == [2, 1]
    assert steps_of(searched.get("/v1/patterns", params={"action": 2, "limit": 1})) == [5]
    assert steps_of(searched.get("/v1/patterns", params={"action": 1})) == []
    assert steps_of(searched.get("/v1/patterns", params={"min_confidence": 0.95})) == []
    assert steps_of(searched.get("/v1/patterns", params={"sandbox_id": "elsewhere"})) == []


def test_search_by_features_with_filters_and_pages(searched: TestClient[Litestar]) -> None:
    query = {"features": [0.31] * 30, "limit": 2}
    near = searched.post("/v1/patterns/search", json=query).json()
    assert [n["pattern"]["step"] for n in near["items"]] == [3, 4]
    assert near["items"][0]["distance"] == pytest.approx(0.01 * 30**0.5, rel=1e-3)
    rest = searched.post("/v1/patterns/search", json={**query, "limit": 9, "cursor": near["next"]})
    assert [n["pattern"]["step"] for n in rest.json()["items"]] == [2, 5, 1, 0]
    assert rest.json()["next"] is None
    only = {**query, "attack_type": "beacon"}
    found = searched.post("/v1/patterns/search", json=only).json()["items"]
    assert [n["pattern"]["step"] for n in found] == [5]
    late = {**query, "since": "2026-11-22T12:04:00Z"}
    found = searched.post("/v1/patterns/search", json=late).json()["items"]
    assert [n["pattern"]["step"] for n in found] == [4, 5]


@pytest.mark.property(43)
def test_what_is_sent_is_found_once_however_often_it_is_sent(
    searched: TestClient[Litestar],
) -> None:
    new = [as_sent(pattern(n, "worm"), metadata={"user": "jané\0"}) for n in range(20, 25)]
    for body in (new[0], new, new[::-1]):
        answer = searched.post("/v1/patterns", json=body)
        assert answer.status_code == 202, answer.text
    assert answer.json() == {"accepted": 5}

    def found() -> list[Any]:
        return list(searched.get("/v1/patterns", params={"attack_type": "worm"}).json()["items"])

    wait_until(lambda: len(found()) == 5)
    assert found() == new[::-1]
