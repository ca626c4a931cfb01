"""The whole service behind its gateway: every route requires credentials, and the right scope."""

import re
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from litestar.testing import TestClient

from drl_core.settings import Access as AccessSettings
from drl_core.settings import Serving, Settings, SettingsError
from drl_serving.access.api_keys import KeyFile
from drl_serving.access.principal import SCOPES
from drl_serving.app import create_app
from drl_serving.gateway.gateway import OPEN

METHODS = ("get", "post", "put", "patch", "delete")
EVENT = {"sandbox_id": "s", "episode_id": "e", "step": 0, "window_s": 1.0}
Bearer = dict[str, str]


class Guarded:
    """A service whose callers need keys."""

    def __init__(self, client: TestClient[Any], keys: KeyFile) -> None:
        self.client = client
        self._keys = keys
        self._made = {scope: keys.create(scope, [scope])[1] for scope in SCOPES}

    def key(self, scope: str) -> str:
        return self._made[scope]

    def bearer(self, scope: str) -> Bearer:
        return {"Authorization": f"Bearer {self.key(scope)}"}


def settings_of(publisher: Any, **access: Any) -> Settings:
    changed: Settings = msgspec.structs.replace(publisher.settings, access=AccessSettings(**access))
    return changed


@pytest.fixture
def guarded(publisher: Any) -> Iterator[Guarded]:
    publisher.publish("v1")
    keys = KeyFile(publisher.settings.keys_path)
    keys.create("first", ["admin"])
    app = create_app(settings_of(publisher))
    with TestClient(app, raise_server_exceptions=False) as client:
        guarded = Guarded(client, keys)
        app._access.poll()
        yield guarded


def routes(client: TestClient[Any]) -> list[tuple[str, str]]:
    """Method and path of every documented route that is not open, parameters filled in."""
    paths = client.get("/schema/openapi.json").json()["paths"]
    return [
        (method, re.sub(r"{[^}]+}", str(uuid.UUID(int=1)), path))
        for path, operations in paths.items()
        for method in METHODS
        if method in operations and not path.startswith(OPEN)
    ]


@pytest.mark.property(44)
def test_no_route_answers_without_good_credentials(guarded: Guarded) -> None:
    found = routes(guarded.client)
    assert len(found) > 10
    bad: list[Bearer] = [{}, {"Authorization": f"Bearer drl_00000000_{'A' * 43}"}]
    for method, path in found:
        for headers in bad:
            response = guarded.client.request(method, path, headers=headers, json={})
            assert response.status_code in (401, 429), f"{method} {path}"
            assert response.headers["content-type"] == "application/problem+json"
            if response.status_code == 401:
                assert response.headers["www-authenticate"].startswith("Bearer")
    for path in ("/health/live", "/health/ready", "/metrics"):
        assert guarded.client.get(path).status_code == 200


@pytest.mark.property(44)
def test_no_route_is_open_to_every_scope(guarded: Guarded) -> None:
    def ask(method: str, path: str, scope: str) -> Any:
        return guarded.client.request(method, path, headers=guarded.bearer(scope))

    for method, path in routes(guarded.client):
        told = ask(method, path, "admin")
        needed = told.json()["detail"].split()[-1] if told.status_code == 403 else "admin"
        assert needed in SCOPES
        for scope in SCOPES - {needed}:  # with the right one some would stream for ever
            assert ask(method, path, scope).status_code == 403, f"{method} {path} by {scope}"


@pytest.mark.property(44)
def test_both_ways_to_a_decision_ask_for_the_same_scope(guarded: Guarded) -> None:
    for body in (EVENT, [EVENT]):  # the lean way, and the framework's
        allowed = guarded.client.post("/v1/decisions", json=body, headers=guarded.bearer("decide"))
        assert allowed.status_code == 200
        for scope in SCOPES - {"decide"}:
            response = guarded.client.post(
                "/v1/decisions", json=body, headers=guarded.bearer(scope)
            )
            assert response.status_code == 403
            assert response.json()["type"] == "urn:drl:problem:missing-scope"


@pytest.mark.property(44)
def test_no_credential_is_found_in_what_the_service_keeps_or_shows(
    guarded: Guarded, publisher: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    for scope in sorted(SCOPES):
        guarded.client.post("/v1/decisions", json=EVENT, headers=guarded.bearer(scope))
        guarded.client.get(f"/v1/patterns?attack_type={guarded.key(scope)}")
    shown = guarded.client.get("/metrics").content + "".join(capfd.readouterr()).encode()
    secrets = [guarded.key(scope)[13:] for scope in sorted(SCOPES)]
    assert not [secret for secret in secrets if secret.encode() in shown]
    patterns = [part for secret in secrets for part in ("-e", secret)]
    found = subprocess.run(  # it passes over the holes of the shared map, which is large
        ["grep", "-rlF", *patterns, str(publisher.settings.home_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (found.returncode, found.stdout) == (1, "")


def test_a_caller_beyond_the_rate_gets_429_and_others_do_not(publisher: Any) -> None:
    publisher.publish("v1")
    keys = KeyFile(publisher.settings.keys_path)
    first, second = (keys.create(name, ["decide"])[1] for name in "ab")
    app = create_app(settings_of(publisher, rate_per_s=0.01, rate_burst=3))
    with TestClient(app, raise_server_exceptions=False) as client:

        def ask(key: str) -> Any:
            return client.post("/v1/decisions", json=EVENT, headers={"X-API-Key": key})

        assert [ask(first).status_code for _ in range(5)] == [200, 200, 200, 429, 429]
        assert 1 <= int(ask(first).headers["retry-after"]) <= 100
        assert ask(second).status_code == 200
        text = client.get("/metrics").text
        assert 'drl_access_refused_total{reason="rate"} 3.0' in text


def test_answers_carry_the_trace_and_what_a_browser_must_not_do(guarded: Guarded) -> None:
    parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    answers = [
        guarded.client.post(
            "/v1/decisions", json=EVENT, headers={**guarded.bearer("decide"), "traceparent": parent}
        ),
        guarded.client.get("/v1/models", headers={"traceparent": parent}),
        guarded.client.get("/health/live", headers={"traceparent": parent}),
    ]
    assert [answer.status_code for answer in answers] == [200, 401, 200]
    for answer in answers:
        assert answer.headers["traceparent"].startswith(f"00-{'ab' * 16}-")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "content-security-policy" in answer.headers


@pytest.mark.property(44)
def test_beyond_this_machine_nothing_is_served_without_credentials(publisher: Any) -> None:
    beyond = msgspec.structs.replace(publisher.settings, serving=Serving(host="0.0.0.0"))  # noqa: S104
    with pytest.raises(SettingsError, match=r"serving\.host"):
        create_app(beyond)
