"""Patterns over HTTP, with a real database that is down, comes, goes, and comes back."""

import datetime as dt
import itertools
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import psycopg
import pytest
from litestar import Litestar
from litestar.di import Provide
from litestar.testing import TestClient

from drl_cli.postgres import EmbeddedPostgres
from drl_core.encryption import Keyring
from drl_core.migrations import migrate
from drl_core.patterns import AttackPattern, upsert
from drl_core.settings import Settings
from drl_serving.access.principal import SCOPES, Principal
from drl_serving.app import create_app
from drl_serving.patterns.controller import PatternController
from drl_serving.patterns.service import Patterns
from drl_serving.problems import answer as answer_problem
from drl_serving.storage import Storage

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


@pytest.mark.property(44)
def test_without_the_scope_nobody_reads_or_stores_a_pattern(
    searched: TestClient[Litestar], home: Path
) -> None:
    def principal_of(scopes: frozenset[str]) -> Principal:
        return Principal("key:1", "key", scopes)

    class AsSomebody:
        """In the front's place: says who asks."""

        def __init__(self, scopes: frozenset[str] | None) -> None:
            self.scopes = scopes

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http" and self.scopes is not None:
                scope.setdefault("state", {})["principal"] = principal_of(self.scopes)
            await app(scope, receive, send)

    service = Patterns(Storage(Settings(home=str(home))))
    app = Litestar(
        [PatternController],
        dependencies={"patterns": Provide(lambda: service, sync_to_thread=False)},
        exception_handlers={Exception: answer_problem},
    )
    near = {"features": [0.5] * 30}
    others = SCOPES - {"patterns"}
    for scopes, status in ((None, 403), (others, 403), (frozenset[str]({"patterns"}), 503)):
        client = TestClient(AsSomebody(scopes))
        assert client.get("/v1/patterns").status_code == status
        assert client.post("/v1/patterns", json=as_sent(pattern(1))).status_code == status
        assert client.post("/v1/patterns/search", json=near).status_code == status


def test_an_outbox_that_cannot_be_written_is_told_and_nothing_is_acknowledged(
    postgres_url: str, tmp_path: Path
) -> None:
    settings = Settings(home=str(tmp_path), database_url=postgres_url)
    (tmp_path / "state").mkdir()
    (tmp_path / "state/outbox.sqlite").write_bytes(b"no database" * 1000)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        answer = client.post("/v1/patterns", json=as_sent(pattern(1)))
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert answer.json()["type"] == "urn:drl:problem:outbox-failed"
        assert client.get("/health/live").status_code == 200


def test_a_key_that_is_gone_is_named(searched: TestClient[Litestar], postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute(
            "UPDATE attack_patterns SET key_id = 'feedfeedfeedfeed', sealed = '' WHERE step = 1"
        )
    answer = searched.get("/v1/patterns")
    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:drl:problem:encryption-key-missing"
    assert "feedfeedfeedfeed" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"since": "yesterday"}, "since"),
        ({"until": "2026-11-22T12:00:00"}, "until"),
        ({"since": "0001-01-01T00:00:00+23:00"}, "since"),
        ({"attack_type": "a\0b"}, "attack_type"),
        ({"sandbox_id": "a\0b"}, "sandbox_id"),
        ({"action": "5"}, "action"),
        ({"min_confidence": "1.5"}, "min_confidence"),
        ({"min_confidence": "nan"}, "min_confidence"),
        ({"cursor": "no cursor"}, "cursor"),
    ],
)
def test_a_wrong_parameter_is_named(
    patterns_client: TestClient[Litestar], parameters: dict[str, str], field: str
) -> None:
    answer = patterns_client.get("/v1/patterns", params=parameters)
    assert answer.status_code == 400
    assert answer.json()["field"] == field


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"features": [0.5] * 29}, "features"),
        ({"features": [1e300] * 30}, "features"),
        ({"action": 5}, "action"),
        ({"time": "2026-11-22T12:00:00"}, "time"),
        ({"time": "0001-01-01T00:00:00+23:00"}, "time"),
        ({"attack_type": "a\0b"}, "attack_type"),
        ({"attack_type": "x" * 129}, "attack_type"),
        ({"episode_id": "a\0b"}, "episode_id"),
        ({"sandbox_id": "jane@home"}, "sandbox_id"),
        ({"metadata": {"long": "x" * 70_000}}, "metadata"),
        ({"metadta": {}}, "[1]"),
    ],
)
def test_a_wrong_pattern_is_named_and_none_of_its_list_is_kept(
    searched: TestClient[Litestar], changes: dict[str, Any], field: str
) -> None:
    good = as_sent(pattern(30, "worm"))
    answer = searched.post("/v1/patterns", json=[good, {**good, **changes}])
    assert answer.status_code == 400, answer.text
    assert field in answer.json()["field"]
    assert "[1]" in answer.json()["field"]
    assert steps_of(searched.get("/v1/patterns", params={"attack_type": "worm"})) == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[1]", b"null", b'"\\ud800"', b"\xff"])
def test_a_body_that_is_no_pattern_is_refused(
    patterns_client: TestClient[Litestar], body: bytes
) -> None:
    json = {"Content-Type": "application/json"}
    answer = patterns_client.post("/v1/patterns", content=body, headers=json)
    assert answer.status_code == 400
    assert answer.json()["field"]
    assert patterns_client.post("/v1/patterns", content=body).status_code == 415


def test_too_many_patterns_are_refused(patterns_client: TestClient[Litestar]) -> None:
    answer = patterns_client.post("/v1/patterns", json=[as_sent(pattern(1))] * 1001)
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"features": [0.1] * 29},
        {"features": [2] * 30},
        {"features": [None] * 30},
        {"features": [0.1] * 30, "cursor": "none"},
        {"features": [0.1] * 30, "attack_type": "a\0"},
        {"features": [0.1] * 30, "since": "2026-11-22T12:00:00"},
    ],
)
def test_a_wrong_state_is_named(patterns_client: TestClient[Litestar], body: Any) -> None:
    client = patterns_client
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
    upsert(url, [pattern(1)], Keyring(publisher.settings.keys_path))
    server.stop()
    step = iter(range(100))
    with start_service(publisher.settings.home_path, DRL_DATABASE_URL=url) as service:

        def decides() -> bool:
            event = {"episode_id": "e", "step": next(step)}
            return bool(service.client.post("/v1/decisions", json=event).status_code == 200)

        def finds() -> int:
            answer = service.client.get("/v1/patterns")
            if answer.status_code != 200:
                assert answer.status_code == 503
                assert answer.headers["retry-after"]
                assert answer.json()["type"] == "urn:drl:problem:database-unavailable"
                return 0
            return len(answer.json()["items"])

        assert (finds(), decides()) == (0, True), "started without a database"
        for stored in (2, 3):
            sent = service.client.post("/v1/patterns", json=as_sent(pattern(stored)))
            assert sent.status_code == 202, "kept while the database is away"
            try:
                assert server.start() == url
                service.wait_until(lambda stored=stored: finds() == stored)
                assert decides()
            finally:
                server.stop()
            assert (finds(), decides()) == (0, True)


@pytest.mark.property(43)
@pytest.mark.integration
def test_kill_9_of_every_process_of_the_service_loses_and_doubles_no_pattern(
    start_service: Any, postgres_url: str, tmp_path: Path
) -> None:
    acknowledged: list[int] = []
    number = itertools.count()

    def sends(service: Any) -> bool:
        steps = [next(number) for _ in range(3)]
        body = [as_sent(pattern(step, "kept"), metadata={"step": step}) for step in steps]
        try:
            answer = service.client.post("/v1/patterns", json=body)
        except httpx.TransportError:
            return False
        if answer.status_code == 202:
            acknowledged.extend(steps)
        return True

    with start_service(tmp_path, DRL_DATABASE_URL=postgres_url) as service:
        tree = psutil.Process(service.process.pid)
        processes = [*tree.children(recursive=True), tree]

        def until_killed() -> None:
            while sends(service):
                pass

        with ThreadPoolExecutor(4) as callers:
            waiting = [callers.submit(until_killed) for _ in range(4)]
            wait_until(lambda: len(acknowledged) > 100)
            for process in processes:
                process.kill()
            for one in waiting:
                one.result()
    with start_service(tmp_path, DRL_DATABASE_URL=postgres_url) as service:

        def stored() -> list[int]:
            with psycopg.connect(postgres_url) as connection:
                query = "SELECT step FROM attack_patterns WHERE attack_type = 'kept'"
                return [row[0] for row in connection.execute(query)]

        wait_until(lambda: set(acknowledged) <= set(stored()))
        assert len(stored()) == len(set(stored()))
