"""The console's sign-in and its parts: sessions, forms, escaping, charts, the matrix."""

import hashlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar.testing import TestClient

from drl_core.policy.actions import Action
from drl_serving.access.api_keys import KeyFile
from drl_serving.access.principal import SCOPES
from drl_serving.app import create_app
from drl_serving.console import charts, sessions
from drl_serving.console.charts import Value, chart
from drl_serving.console.models import matrix
from drl_serving.console.sessions import COOKIE, LIFETIME_S, ConsoleSessions
from drl_serving.observability.metrics import Metrics

EVENT = {"sandbox_id": "s", "episode_id": "<b>e</b>", "step": 0}
PAGES = ("", "/decisions", "/decisions/rows", "/model", "/model/rollback", "/shadow", "/audit")
HOSTILE = '"><b>'
HERE = {"Sec-Fetch-Site": "same-origin"}


class Guarded:
    """A service that needs keys, and a browser's worth of it."""

    def __init__(self, publisher: Any, client: TestClient[Any], front: Any) -> None:
        self.client = client
        self.file = KeyFile(publisher.settings.keys_path)
        self.keys_path = publisher.settings.keys_path
        self.access = front._access

    def key(self, *scopes: str) -> tuple[str, str]:
        """A new key's id and text, known to the service."""
        made, text = self.file.create("test", scopes)
        self.poll()
        return made.id, text

    def poll(self) -> None:
        self.access.poll()

    def sign_in(self, text: str, **headers: str) -> Any:
        return self.client.post(
            "/console/login",
            data={"key": text},
            headers={**HERE, **headers},
            follow_redirects=False,
        )

    def get(self, path: str) -> Any:
        return self.client.get(f"/console{path}", follow_redirects=False)


@pytest.fixture
def guarded(publisher: Any) -> Iterator[Guarded]:
    publisher.publish("v0")
    publisher.publish("v1")
    KeyFile(publisher.settings.keys_path).create("first", ["admin"])
    front = create_app(publisher.settings)
    with TestClient(front, raise_server_exceptions=False) as client:
        yield Guarded(publisher, client, front)


def token_of(page: Any) -> str:
    found = re.search(r'name="token" value="([^"]+)"', page.text)
    assert found
    return found[1]


def test_without_a_session_every_page_leads_to_the_sign_in(guarded: Guarded) -> None:
    for path in (*PAGES, "/patterns", "/decisions/log"):
        answer = guarded.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/login")
    by_script = guarded.client.get("/console", headers={"HX-Request": "true"})
    assert (by_script.status_code, by_script.headers["hx-redirect"]) == (401, "/console/login")
    assert guarded.get("/login").status_code == 200
    assert guarded.get("/static/console.css").status_code == 200
    assert guarded.get("/static/..%2fsessions.py").status_code == 404
    assert guarded.get("/static/htmx.LICENSE").status_code == 404


def test_only_an_api_key_opens_a_session(guarded: Guarded) -> None:
    for text in ("", "drl_00000000_" + "A" * 43, "é", "x" * 10_000):
        answer = guarded.sign_in(text)
        assert answer.status_code in (400, 401)
        assert "set-cookie" not in answer.headers
        assert "API key" in answer.text
    _, text = guarded.key("decide")
    answer = guarded.sign_in(f" {text}\n")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console")
    sent = answer.headers["set-cookie"]
    assert "HttpOnly; SameSite=Strict" in sent
    assert f"Path=/console; Max-Age={LIFETIME_S}" in sent
    assert text.split("_", 2)[2] not in sent
    assert guarded.get("").status_code == 200


def test_the_secret_is_its_owners_alone(guarded: Guarded) -> None:
    guarded.sign_in(guarded.key("decide")[1])
    path = guarded.keys_path / sessions.FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_bytes()) == 32


def test_over_tls_the_cookie_is_sent_over_nothing_else(guarded: Guarded) -> None:
    access: Any = guarded.access
    assert "; Secure" in ConsoleSessions(access, guarded.keys_path, secure=True).end()
    assert "; Secure" not in ConsoleSessions(access, guarded.keys_path, secure=False).end()


def test_a_session_ends_with_its_key(guarded: Guarded) -> None:
    key_id, text = guarded.key("decide")
    guarded.sign_in(text)
    assert guarded.get("").status_code == 200
    guarded.file.revoke(key_id)
    guarded.poll()
    assert guarded.get("").status_code == 303


def test_a_session_ends_after_eight_hours(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded.sign_in(guarded.key("decide")[1])
    cookie = guarded.client.cookies[COOKIE]
    later = time.time() + LIFETIME_S + 1
    monkeypatch.setattr(sessions.time, "time", lambda: later)  # the clock, nothing else
    answer = guarded.client.get(
        "/console", headers={"Cookie": f"{COOKIE}={cookie}"}, follow_redirects=False
    )
    assert answer.status_code == 303


def test_a_changed_or_made_up_cookie_opens_nothing(guarded: Guarded) -> None:
    guarded.sign_in(guarded.key(*SCOPES)[1])
    good = guarded.client.cookies[COOKIE]
    content, _, signature = good.partition(".")
    guarded.client.cookies.clear()
    changed = ("B" if content[5] != "B" else "C").join((content[:5], content[6:]))
    for value in ("", ".", "a.b", content, f"{changed}.{signature}", f"{content}.{'A' * 43}", "=="):
        answer = guarded.client.get(
            "/console", headers={"Cookie": f"{COOKIE}={value}"}, follow_redirects=False
        )
        assert answer.status_code == 303, value
    kept = guarded.client.get("/console", headers={"Cookie": f"a=b; {COOKIE}={good}"})
    assert kept.status_code == 200


@pytest.mark.property(44)
def test_the_cookie_opens_nothing_of_the_api(guarded: Guarded) -> None:
    guarded.sign_in(guarded.key(*SCOPES)[1])
    headers = {"Cookie": f"{COOKIE}={guarded.client.cookies[COOKIE]}"}
    for method, path in (
        ("GET", "/v1/models"),
        ("POST", "/v1/models/rollback"),
        ("POST", "/v1/decisions"),
        ("GET", "/v1/patterns"),
        ("GET", "/v2"),
    ):
        answer = guarded.client.request(method, path, headers=headers)
        assert answer.status_code == 401, path


@pytest.mark.property(44)
def test_pages_ask_for_the_scope_that_their_content_needs(guarded: Guarded) -> None:
    needed = {
        "/decisions": "review",
        "/decisions/rows": "review",
        "/decisions/log": "review",
        f"/decisions/{'0' * 8}-0000-0000-0000-{'0' * 12}": "review",
        "/patterns": "patterns",
        "/model/rollback": "publish",
        "/audit": "admin",
    }
    for scope in sorted(SCOPES):
        guarded.sign_in(guarded.key(scope)[1])
        for path in ("", "/model", "/shadow"):
            assert guarded.get(path).status_code == 200
        for path, wanted in needed.items():
            assert (guarded.get(path).status_code == 403) == (scope != wanted), (scope, path)
        near = guarded.get(f"/patterns?near={'0' * 32}")
        assert near.status_code == 403, "a decision's state needs review as well"


def test_a_post_needs_the_token_of_its_session(guarded: Guarded) -> None:
    guarded.sign_in(guarded.key("publish")[1])
    theirs = token_of(guarded.get("/model/rollback"))
    guarded.sign_in(guarded.key("publish")[1])
    good = token_of(guarded.get("/model/rollback"))

    def post(token: str | None, **headers: str) -> int:
        form = {"sequence": "2"} if token is None else {"sequence": "2", "token": token}
        answer = guarded.client.post("/console/model/rollback", data=form, headers=headers)
        status: int = answer.status_code
        return status

    assert good != theirs
    for token in (None, "", theirs, good[:-1]):
        assert post(token) == 403
    assert post(good, **{"Sec-Fetch-Site": "cross-site"}) == 403
    assert guarded.sign_in("x", **{"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert guarded.client.get("/health/ready").json()["sequence"] == 2
    assert post(good, **HERE) == 200
    assert guarded.client.get("/health/ready").json()["sequence"] == 3
    assert post(good, **HERE) == 409, "the page was about the model before"


def test_signing_out_takes_the_cookie_away(guarded: Guarded) -> None:
    guarded.sign_in(guarded.key("decide")[1])
    assert guarded.client.post("/console/logout", data={"token": "no"}).status_code == 403
    token = token_of(guarded.get(""))
    guarded.client.post("/console/logout", data={"token": token}, headers=HERE)
    assert guarded.get("").status_code == 303


def test_where_nobody_needs_credentials_nobody_signs_in(client: TestClient[Any]) -> None:
    page = client.get("/console")
    assert page.status_code == 200
    assert "Sign out" not in page.text
    assert client.get("/console/login", follow_redirects=False).headers["location"] == "/console"
    foreign = client.post("/console/model/rollback", data={"sequence": "1"})
    assert foreign.status_code == 403


class _Inline(HTMLParser):
    """Collects what the policy of these pages would refuse, and what escaping has failed on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        inline = tag == "style" or (tag == "script" and "src" not in names) or "style" in names
        own = all((names.get(name) or "/").startswith(("/", "#", "?")) for name in ("src", "href"))
        if inline or not own or tag == "b" or any(name.startswith("on") for name in names):
            self.found.append(f"{tag} {names}")


def test_no_page_has_anything_inline_or_from_elsewhere(client: TestClient[Any]) -> None:
    made = client.post("/v1/decisions", json=EVENT).json()
    refused = "/console/decisions?action=<b>"
    paths = [f"/console{path}" for path in PAGES]
    filters = f"/console/decisions?action=0&sandbox={quote(HOSTILE)}"
    paths += [f"/console/decisions/{made['decision_id']}", "/schema", filters, refused]
    for path in paths:
        page = client.get(path)
        assert page.status_code == (400 if path == refused else 200), page.text
        assert page.headers["content-type"].startswith("text/html")
        assert "script-src 'self'" in page.headers["content-security-policy"]
        parser = _Inline()
        parser.feed(page.text)
        assert parser.found == [], path


def test_rows_that_have_not_changed_are_not_sent_again(client: TestClient[Any]) -> None:
    client.post("/v1/decisions", json=EVENT)
    rows = client.get("/console/decisions/rows?after=0")
    assert rows.status_code == 200
    more = re.search(r'hx-get="([^"]+)"', rows.text)
    assert more
    assert client.get(more[1].replace("&amp;", "&")).status_code == 204
    client.post("/v1/decisions", json={**EVENT, "step": 1})
    assert client.get(more[1].replace("&amp;", "&")).status_code == 200


def test_rows_are_the_newest_of_a_sandbox_and_an_action(client: TestClient[Any]) -> None:
    made = []
    for number in range(30):
        event = {"sandbox_id": f"s{number % 3}", "episode_id": f"e{number}", "step": 0}
        made.append(client.post("/v1/decisions", json=event).json())
    page = client.get("/console/decisions?sandbox=s1").text
    shown = re.findall(r'id="d-([^"]+)"', page)
    assert shown == [one["decision_id"] for one in reversed(made) if one["sandbox_id"] == "s1"]
    action = made[0]["action"]
    page = client.get(f"/console/decisions?action={action}").text
    wanted = [one["decision_id"] for one in reversed(made) if one["action"] == action]
    assert re.findall(r'id="d-([^"]+)"', page) == wanted


def test_the_canarys_decisions_are_turned_around_in_the_matrix() -> None:
    metrics = Metrics()
    watch, ask = Action.CONTINUE_MONITORING, Action.REQUEST_HUMAN_REVIEW
    metrics.compared("champion", watch.label, ask.label, 3)
    metrics.compared("challenger", ask.label, watch.label, 2)
    metrics.compared("champion", watch.label, watch.label, 5)
    found = matrix(metrics.collect())
    assert found.counts[watch][ask] == 5
    assert (found.total, found.agreed) == (10, 5)


FINITE = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(st.tuples(FINITE, st.none() | st.tuples(FINITE, FINITE)), min_size=1, max_size=12))
def test_every_mark_is_drawn_inside_its_picture(rows: list[Any]) -> None:
    values = [
        Value(f"row {number}", value, sorted((*interval, value))[::2] if interval else None)
        for number, (value, interval) in enumerate(rows)
    ]
    drawn = chart("any", values)
    assert drawn is not None
    right = charts.WIDTH - charts.RIGHT
    for mark in drawn.marks:
        for x in (mark.x, mark.low, mark.high, mark.zero):
            assert x is None or charts.LEFT <= x <= right
        assert 0 < mark.y < drawn.height
    assert [x for x, _ in drawn.ticks] == sorted(x for x, _ in drawn.ticks)
    order = sorted(range(len(values)), key=lambda at: values[at].value or 0.0)
    places = [drawn.marks[at].x for at in order]
    assert places == sorted(places, key=lambda x: x or 0.0)


def test_nothing_to_draw_is_no_picture() -> None:
    assert chart("none", []) is None
    assert chart("none", [Value("a", None), Value("b", float("nan"))]) is None


def test_a_vendored_script_is_the_one_that_was_released() -> None:
    from drl_serving.console.pages import static_file

    found = hashlib.sha256(static_file("htmx.min.js")).hexdigest()
    assert found == "d6fdc75f204e6bdefa99b69bf1e6d4ac69b8a364f77929f45c13476b4000f717"


def test_templates_are_loaded_with_the_first_page() -> None:
    code = "import sys, drl_serving.app; print('jinja2' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout.strip() == "False"
