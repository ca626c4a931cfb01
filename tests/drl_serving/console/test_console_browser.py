"""The console in a real browser, on the running service with two workers and its database."""

import datetime as dt
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drl_assets.learning.export.onnx_export import export, golden
from drl_assets.learning.learners.networks import seeded_network
from drl_core.release.signing_keys import signing_key
from drl_core.storage.encryption import Keyring
from drl_core.storage.patterns import AttackPattern, upsert
from drl_serving.access.api_keys import KeyFile
from drl_serving.access.principal import SCOPES
from drl_serving.console.sessions import COOKIE

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install)"),
]

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
EVALUATION = {
    "episodes": 41,
    "malicious": 18,
    "sessions": 17,
    "policies": {
        "never_act": {"utility": -1.0, "containment": 0.0, "benign_interruption": 0.0},
        "drl": {"utility": -0.5, "containment": 0.625, "benign_interruption": 0.01},
    },
    "intervals": {"drl": {"utility": [-0.75, -0.25], "containment": [0.4, 0.8]}},
    "advantage": {"never_act": [0.1, 0.9]},
    "advantage_mean": {"never_act": 0.5},
    "notes": [HOSTILE],
    "gates": {
        "onnx_parity": {"passed": True, "severity": "ERROR", "reason": "same"},
        "interruption_within_budget": {"passed": False, "severity": "WARN", "reason": "too few"},
    },
}
PAGES = ("", "/decisions", "/decisions/log", "/model", "/model/rollback", "/shadow", "/patterns")
NOON = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)


class Running:
    """The running service, its keys, and the browser."""

    def __init__(self, service: Any, keys: dict[str, str], browser: Any) -> None:
        self.service = service
        self.url = str(service.client.base_url).rstrip("/")
        self.keys = keys
        self.browser = browser
        self._sessions: dict[str, str] = {}

    def session(self, scope: str) -> str:
        """The cookie of a session that began with a key of a scope; one for all tests."""
        if scope not in self._sessions:
            form = {"key": self.keys[scope]}
            answer = self.service.client.post("/console/login", data=form)
            self._sessions[scope] = answer.cookies[COOKIE]
            self.service.client.cookies.clear()
        return self._sessions[scope]

    def decide(self, episode: str, sandbox: str = "sandbox-1", step: int = 0) -> dict[str, Any]:
        """Have the service make one decision."""
        event = {"sandbox_id": sandbox, "episode_id": episode, "step": step, "cpu_usage": 50}
        answer = self.service.client.post(
            "/v1/decisions", json=event, headers={"X-API-Key": self.keys["all"]}
        )
        assert answer.status_code == 200, answer.text
        made: dict[str, Any] = answer.json()
        return made


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory,
    new_publisher: Callable[[Path], Any],
    start_service: Any,
    postgres_url: str,
) -> Iterator[Running]:
    """One service and one browser for the module."""
    home = tmp_path_factory.mktemp("console")
    publisher = new_publisher(home)
    keys_path = publisher.settings.keys_path
    publisher.publish("v0")
    publisher.publish("v1", evaluation=EVALUATION, batch_partitions=["00000007-abc"])
    other = seeded_network([32, 32], 7)
    staged = publisher.manifest("v2", golden=golden(other))
    publisher.store.stage(export(other), staged, signing_key(keys_path))
    (publisher.store.root / "releases" / "00000009.json").write_text("no release")
    file = KeyFile(keys_path)
    keys = {scope: file.create(scope, [scope])[1] for scope in SCOPES}
    keys["all"] = file.create("all", SCOPES)[1]
    upsert(postgres_url, [pattern(n) for n in range(30)], Keyring(keys_path))
    environ = {
        "DRL_SERVING__WORKERS": "2",
        "DRL_SERVING__CHALLENGER": "v2",
        "DRL_DATABASE_URL": postgres_url,
    }
    with (
        start_service(home, **environ) as service,
        playwright.sync_playwright() as driver,
    ):
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield Running(service, keys, browser)
        browser.close()


def pattern(step: int) -> AttackPattern:
    return AttackPattern(
        sandbox_id="sandbox-1",
        episode_id="e",
        step=step,
        model_version="v1",
        features=[step / 30] * 30,
        action=3,
        reward=1.0,
        attack_type=HOSTILE if step == 29 else "ransomware" if step % 2 else "beacon",
        confidence=0.9,
        time=NOON + dt.timedelta(minutes=step),
        metadata={"process": HOSTILE},
    )


@pytest.fixture
def visit(running: Running) -> Iterator[Callable[..., Any]]:
    """A function that opens the console in a browser of its own, signed in by a key of a scope.

    Whatever runs that should not, is blocked, fails, or goes elsewhere, fails the test.
    """
    wrong: list[str] = []
    contexts = []

    def watched(page: Any) -> None:
        page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append("a dialog"), dialog.dismiss()))
        page.on("request", lambda one: one.url.startswith(running.url) or wrong.append(one.url))

    def visit(scope: str | None = "all", **options: Any) -> Any:
        context = running.browser.new_context(**options)
        contexts.append(context)
        if scope is not None:
            session = {"name": COOKIE, "value": running.session(scope), "httpOnly": True}
            context.add_cookies([{**session, "url": f"{running.url}/console"}])
        page = context.new_page()
        watched(page)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert wrong == []


def open_page(page: Any, running: Running, path: str) -> Any:
    page.goto(f"{running.url}/console{path}")
    return page


def test_a_key_opens_a_session_that_scripts_cannot_read(
    running: Running, visit: Callable[..., Any]
) -> None:
    page = open_page(visit(None), running, "")
    page.get_by_label("API key").fill(running.keys["all"])
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="Overview").wait_for()
    [cookie] = page.context.cookies()
    assert (cookie["name"], cookie["path"]) == (COOKIE, "/console")
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("API key").wait_for()
    open_page(page, running, "/model")
    assert page.url.endswith("/console/login")


def test_the_overview_tells_of_workers_model_and_stores(
    running: Running, visit: Callable[..., Any]
) -> None:
    running.decide("overview")
    cards = open_page(visit(), running, "").locator(".card")
    told = {card.split("\n")[0]: card for card in cards.all_inner_texts()}
    assert "2 of 2" in told["Workers"]
    assert running.service.version() in told["Model"]
    assert "v2" in told["Challenger"]
    assert "writable" in told["Landing zone"]
    assert "sandbox-1" in told["Last decision"]
    assert "answers" in told["PostgreSQL"]
    assert "none yet" in told["Last batch"]


def test_rows_appear_as_decisions_are_made_and_stand_still_when_paused(
    running: Running, visit: Callable[..., Any]
) -> None:
    page = open_page(visit(), running, "/decisions")
    made = running.decide(HOSTILE)
    link = page.locator(f"#d-{made['decision_id']}")
    link.wait_for()
    assert HOSTILE in link.locator("xpath=ancestor::tr").inner_text()
    page.get_by_role("link", name="Pause").click()
    page.get_by_text("Paused").wait_for()
    later = running.decide("while paused")
    page.get_by_role("link", name="Resume").click()
    page.locator(f"#d-{later['decision_id']}").wait_for()


def test_rows_keep_to_their_filter(running: Running, visit: Callable[..., Any]) -> None:
    page = open_page(visit(), running, "/decisions")
    wanted = running.decide("mine", sandbox="sandbox-2")
    page.get_by_label("Sandbox").fill("sandbox-2")
    page.get_by_label("Action").select_option(str(wanted["action"]))
    page.get_by_role("button", name="Filter").click()
    page.locator(f"#d-{wanted['decision_id']}").wait_for()
    running.decide("theirs")
    again = running.decide("mine too", sandbox="sandbox-2")
    if again["action"] == wanted["action"]:
        page.locator(f"#d-{again['decision_id']}").wait_for()
    names = page.locator("#rows td:nth-child(2)").all_inner_texts()
    assert set(names) == {"sandbox-2"}
    page.get_by_label("Action").select_option(str((wanted["action"] + 1) % 5))
    page.get_by_role("button", name="Filter").click()
    page.get_by_text("No decision here yet.").wait_for()


def test_a_decision_leads_to_its_inputs_and_to_the_batches_behind_it(
    running: Running, visit: Callable[..., Any]
) -> None:
    made = running.decide("detail")
    page = open_page(visit(), running, "/decisions")
    page.locator(f"#d-{made['decision_id']}").click()
    page.get_by_text(made["reason"]).wait_for()
    assert page.locator("svg.chart title").text_content() == "Q-values"
    shown = page.get_by_role("table", name="Q-values of the five actions").inner_text()
    assert all(f"{value:z.4f}" in shown for value in made["q_values"])
    assert "cpu usage\t50.000" in page.get_by_role("table", name="This window").inner_text()
    if made["model_version"] == "v1":
        assert page.locator("#batches").inner_text() == "00000007-abc"
    page.get_by_role("link", name="Known patterns near this state").click()
    page.get_by_text("Nearest to the state of").wait_for()
    distances = page.locator("tbody td:first-child").all_inner_texts()
    assert distances == sorted(distances, key=float)


def test_the_card_shows_the_evaluation_the_gates_and_refused_releases(
    running: Running, visit: Callable[..., Any]
) -> None:
    page = open_page(visit(), running, "/model")
    policies = " ".join(
        page.get_by_role("table", name="Policies side by side").inner_text().split()
    )
    assert "-0.500 [-0.75, -0.25]" in policies
    assert "0.500 [0.10, 0.90]" in policies
    gates = page.get_by_role("table", name="Release gates and their verdicts").inner_text()
    assert re.search("onnx parity\tpassed", gates)
    assert re.search("interruption within budget\twarned\ttoo few", gates)
    releases = page.get_by_role("table", name="releases").inner_text()
    assert re.search("9\tunknown\t\trefused: ", releases)
    assert "serving" in releases
    titles = page.locator("svg.chart title").all_text_contents()
    assert len(titles) == 4
    assert page.locator("svg.chart desc").first.text_content() == "never act -1.000; drl -0.500"


def test_the_matrix_counts_what_the_challenger_would_do(
    running: Running, visit: Callable[..., Any]
) -> None:
    page = visit()

    def compared() -> int:
        return int(open_page(page, running, "/shadow").locator("#compared").inner_text())

    before = compared()
    for step in range(5):
        running.decide("shadowed", step=step)
    running.service.wait_until(lambda: compared() >= before + 5)
    cells = page.locator(".matrix td").all_inner_texts()
    assert len(cells) == 25
    assert sum(map(int, cells)) == compared()
    assert int(page.locator("#agreed").inner_text().split()[0]) == sum(map(int, cells[::6]))


def test_patterns_are_found_by_type_and_time_page_by_page(
    running: Running, visit: Callable[..., Any]
) -> None:
    page = open_page(visit("patterns"), running, "/patterns")
    rows = page.locator("tbody tr")
    assert rows.count() == 25
    assert HOSTILE in rows.first.inner_text()
    rows.first.get_by_text("show").click()
    assert HOSTILE in rows.first.locator("dd").last.inner_text()
    page.get_by_role("link", name="Older").click()
    page.wait_for_url("**cursor=**")
    assert rows.count() == 5
    open_page(page, running, "/patterns")
    page.get_by_label("Attack type").fill("beacon")
    page.get_by_label("Since, UTC").fill("2026-11-22T12:10")
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**attack_type=beacon**")
    assert rows.count() == 10
    assert set(page.locator("tbody td:nth-child(2)").all_inner_texts()) == {"beacon"}


def test_a_session_shows_no_more_than_its_key_may(
    running: Running, visit: Callable[..., Any]
) -> None:
    page = open_page(visit("decide"), running, "")
    menu = page.get_by_role("navigation").inner_text().split("\n")
    assert menu == ["Overview", "Model", "Shadow", "API"]
    open_page(page, running, "/model")
    assert page.get_by_role("link", name="Roll back").count() == 0
    for path in ("/decisions", "/decisions/log", "/patterns", "/audit", "/model/rollback"):
        assert page.context.request.get(f"{running.url}/console{path}").status == 403
    page = visit("admin")
    open_page(page, running, "/audit?action=console")
    told = page.locator("tbody tr").first.inner_text()
    assert "console.signed_in" in told


def test_every_page_is_accessible(running: Running, visit: Callable[..., Any]) -> None:
    made = running.decide("accessible")
    page = visit()
    paths = [f"/console{path}" for path in (*PAGES, "/audit")]
    paths += [f"/console/decisions/{made['decision_id']}", "/schema", "/console/login"]
    for path in paths:
        page.goto(f"{running.url}{path}")
        found = axe.Axe().run(page)
        assert found.violations_count == 0, f"{path}: {found.generate_report()}"


def test_colours_differ_enough_in_the_dark(running: Running, visit: Callable[..., Any]) -> None:
    page = visit(color_scheme="dark")
    contrast = {"resultTypes": ["violations"], "runOnly": ["color-contrast"]}
    for path in ("", "/decisions", "/model", "/shadow", "/patterns"):
        found = axe.Axe().run(open_page(page, running, path), options=contrast)
        assert found.violations_count == 0, f"{path}: {found.generate_report()}"


def test_the_keyboard_reaches_the_content_first(
    running: Running, visit: Callable[..., Any]
) -> None:
    page = open_page(visit(), running, "/model")
    page.keyboard.press("Tab")
    focused = page.locator(":focus")
    assert focused.inner_text() == "Skip to the content"
    assert focused.bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


def test_the_api_is_described_without_scripts_and_without_other_sites(
    running: Running, visit: Callable[..., Any]
) -> None:
    page = visit("decide")
    page.goto(f"{running.url}/schema")
    page.get_by_role("heading", name="POST /v1/decisions", exact=True).wait_for()
    assert "console" not in page.locator(".toc").inner_text()


def test_a_rollback_asks_first_and_then_serves_the_model_before(
    running: Running, visit: Callable[..., Any]
) -> None:
    before = running.service.version()
    page = open_page(visit("publish"), running, "/model")
    page.get_by_role("link", name="Roll back").click()
    page.get_by_role("button", name=f"Take {before} back").click()
    page.get_by_role("status").wait_for()
    assert "is released again" in page.get_by_role("status").inner_text()
    running.service.wait_until(lambda: running.service.version() != before)
    page.get_by_role("link", name="Model").last.click()
    page.get_by_text(f"a rollback of {before}").wait_for()
    told = open_page(visit("admin"), running, "/audit?action=model.rollback")
    assert "key:" in told.locator("tbody tr").first.inner_text()
