"""What is under deploy/ holds on a running service: each rule and each query of the dashboard.

The service runs with two workers, Prometheus scrapes it, and each expression is evaluated over
Prometheus' own interface; a series that the service does not have would be a typing error there.
"""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

DEPLOY = Path(__file__).parents[3] / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
INTERVAL = "$__rate_interval"
_NAME = re.compile(r"\b(?:drl[:_][a-z0-9_:]+|up)\b(?=\s*[{\[)\s]|$)")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        shutil.which("promtool") is None or shutil.which("prometheus") is None,
        reason="prometheus and promtool are not installed (Debian's package prometheus)",
    ),
]


def dashboard_queries() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    return [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", [])]


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60, cwd=DEPLOY
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_configuration_and_rules_are_sound() -> None:
    assert "SUCCESS" in promtool("check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    assert "SUCCESS" in promtool("check", "rules", RULES)


def test_each_alert_comes_and_goes_when_it_should() -> None:
    promtool("test", "rules", *sorted((DEPLOY / "prometheus").glob("rules*_test.yml")))


def test_the_dashboard_has_its_parts_and_no_two_of_one_id() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    identities = [panel["id"] for panel in dashboard["panels"]]
    assert len(identities) == len(set(identities))
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        assert 0 <= grid["x"] < grid["x"] + grid["w"] <= 24
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["targets"]


class Prometheus:
    """A running server that scrapes one target every half second."""

    def __init__(self, folder: Path, target: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        given = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
        config = given.replace("15s", "500ms").replace("127.0.0.1:8000", target)
        assert config != given
        (folder / "prometheus.yml").write_text(config)
        shutil.copy(RULES, folder)
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--log.level=error",
            ],
            cwd=folder,
        )

    def get(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(
            f"http://127.0.0.1:{self.port}/api/v1/{path}", params=parameters, timeout=10
        )
        assert answer.status_code == 200, f"{parameters}: {answer.text}"
        return answer.json()["data"]

    def value(self, query: str) -> float:
        """Of the one sample that a query gives; 0 where it gives none."""
        found = self.get("query", query=query)["result"]
        return float(found[0]["value"][1]) if found else 0.0

    def wait_until(self, query: str, least: float) -> None:
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.TransportError, AssertionError):
                if self.value(query) >= least:
                    return
            assert time.monotonic() < until, f"{query} never came to {least}"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def monitored(
    tmp_path_factory: pytest.TempPathFactory,
    new_publisher: Callable[[Path], Any],
    start_service: Callable[..., Any],
) -> Iterator[Prometheus]:
    """Prometheus over a service that has decided, refused, landed and compared."""
    publisher = new_publisher(tmp_path_factory.mktemp("home"))
    publisher.publish("v1")
    publisher.publish("v2", 1.0)
    folder = tmp_path_factory.mktemp("prometheus")
    environment = {
        "DRL_SERVING__WORKERS": "2",
        "DRL_SERVING__CHALLENGER": "v1",
    }
    with start_service(publisher.settings.home_path, **environment) as service:
        prometheus = Prometheus(folder, f"127.0.0.1:{service.client.base_url.port}")
        try:
            prometheus.wait_until("sum(drl_model_info)", 2)
            drive(service.client)
            prometheus.wait_until("sum(drl_decisions_total)", 30)
            prometheus.wait_until("sum(drl_shadow_comparisons_total)", 30)
            drive(service.client, episode="later")  # a rate needs two scrapes
            prometheus.wait_until("sum(drl_decisions_total)", 60)
            yield prometheus
        finally:
            prometheus.process.terminate()
            prometheus.process.wait(30)


def drive(client: httpx.Client, episode: str = "first") -> None:
    """Requests of each kind that the metrics tell apart."""
    for step in range(30):
        event = {"sandbox_id": "s", "episode_id": episode, "step": step, "window_s": 1.0}
        assert client.post("/v1/decisions", json=event).status_code == 200
    assert client.post("/v1/decisions", json={"step": -1}).status_code == 400
    assert client.post("/v1/telemetry", json=[event]).status_code in (200, 201, 202)
    assert client.get("/v1/models").status_code == 200
    assert client.get("/nowhere").status_code == 404


@pytest.mark.parametrize("query", dashboard_queries())
def test_a_query_of_the_dashboard_holds_on_a_running_service(
    monitored: Prometheus, query: str
) -> None:
    evaluated = monitored.get("query", query=query.replace(INTERVAL, "1m"))
    assert evaluated["resultType"] == "vector"
    known = set(monitored.get("label/__name__/values"))
    named = set(_NAME.findall(query))
    assert named
    assert named <= known, "series that the service does not have"


def test_every_rule_is_evaluated_and_names_series_that_there_are(monitored: Prometheus) -> None:
    monitored.wait_until("count(drl:request_errors:ratio_rate5m)", 1)
    known = set(monitored.get("label/__name__/values"))
    rules = [rule for group in monitored.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(re.findall(r"- (?:alert|record):", RULES.read_text()))
    for rule in rules:
        assert rule["health"] == "ok", rule
        named = set(_NAME.findall(rule["query"]))
        assert named
        assert named <= known, f"{rule['name']}: series that the service does not have"
    firing = {rule["name"] for rule in rules if rule.get("state") == "firing"}
    assert firing == set(), "a healthy service raises no alarm"


def test_both_workers_are_seen_and_every_decision_is_counted(monitored: Prometheus) -> None:
    assert monitored.value("count(drl_worker_cpu_seconds)") == 2
    assert monitored.value("sum(drl_decisions_total)") == 60
    answered = 'sum(drl_http_requests_total{route="/v1/decisions",status="200"})'
    assert monitored.value(answered) == 60
