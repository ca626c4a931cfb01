"""The service follows its configuration files while it runs, by the metadata of each field."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from litestar.testing import TestClient
from structlog.testing import capture_logs

from drl_core.settings import Settings
from drl_serving.app import Service
from drl_serving.audit import log as audit
from drl_serving.live_settings import LiveSettings
from drl_serving.observability import logs
from drl_serving.reload import FIELDS, Reload, Watcher


def test_a_change_is_taken_and_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "default.json"
    file.write_text('{"serving": {"mode": "observe"}}')
    taken: list[Reload] = []
    live = LiveSettings(Settings(), Watcher(tmp_path, {}), taken.append)
    assert not live.poll()
    file.write_text('{"serving": {"mode": "enforce", "max_batch": 7}}')
    assert live.poll()
    serving = [change.settings.serving for change in taken]
    assert [(s.mode, s.max_batch) for s in serving] == [("enforce", 7)]
    file.write_text('{"serving": {"mode": "sometimes"}}')
    assert not live.poll()
    assert len(taken) == 1
    file.write_text('{"serving": {"mode": "observe", "max_batch": 8}} ')
    assert live.poll()
    assert taken[-1].settings.serving.max_batch == 8


OTHER: dict[str, Any] = {
    "environment": "other",
    "home": "/nowhere",
    "database_url": "postgresql://u:p@nowhere/d",
    "learning.preset": "report",
    "learning.member_layers": [8],
    "learning.hidden_layers": [8],
    "learning.device": "cpu",
    "serving.host": "127.0.0.2",
    "serving.mode": "enforce",
    "serving.sandbox_modes": {"lab": "enforce"},
    "observability.log_level": "error",
    "alerts.webhook_url": "http://127.0.0.1:1/",
    "costs.damage_extra": {"x": 1.0},
    "costs.isolation_per_window": [0.0, 0.0, 0.0, 0.0],
    "costs.isolation_effectiveness": [0.0, 0.0, 0.0, 0.0],
}
"""Values that are no default; of numbers and optional texts, `changed` makes one."""

IN_FORCE: dict[str, Callable[[Service], Any]] = {
    "serving.mode": lambda s: s.decisions.rules.mode_of("any"),
    "serving.sandbox_modes": lambda s: dict(s.decisions.rules.sandbox_modes),
    "serving.containment_margin": lambda s: s.decisions.rules.containment_margin,
    "serving.challenger": lambda s: s.models._wanted,
    "serving.canary_share": lambda s: s.decisions.rules.canary_share,
    "serving.decision_log_share": lambda s: s.decisions.rules.decision_log_share,
    "serving.decision_log_days": lambda s: s.maintenance.retention_days,
    "serving.max_body_bytes": lambda s: s.limits.max_body_bytes,
    "serving.max_batch": lambda s: s.limits.max_batch,
    "serving.max_in_flight": lambda s: s.gateway.shedder.max_in_flight,
    "serving.request_timeout_s": lambda s: s.limits.timeout_s,
    "access.rate_per_s": lambda s: s.access._rate,
    "access.rate_burst": lambda s: s.access._burst,
    "observability.log_level": lambda s: logging.getLevelName(logging.getLogger().level).lower(),
    "observability.trace_share": lambda s: s.gateway.trace_share,
}
"""What the service's parts go by, for each reloadable field that it reads."""


def value_of(settings: Any, path: str) -> Any:
    for name in path.split("."):
        settings = getattr(settings, name)
    return settings


def changed(path: str) -> Any:
    before = value_of(Settings(), path)
    if path in OTHER:
        return OTHER[path]
    if before is None:
        return 1234 if path.endswith("port") else "other"
    return before + 1 if isinstance(before, int) else before / 2 or 0.25


@dataclasses.dataclass
class Running:
    """A service in this process, and the file that it follows."""

    file: Path
    service: Service

    def poll(self, path: str | None, value: Any = None) -> bool:
        content: dict[str, Any] = {"home": self.service.settings.home}
        if path is not None:
            section, _, name = path.rpartition(".")
            content |= {section: {name: value}} if section else {name: value}
        self.file.write_text(json.dumps(content))
        assert self.service.live is not None
        return self.service.live.poll()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("live")
    settings = Settings(home=str(folder / "home"))
    file = folder / "default.json"
    file.write_text(json.dumps({"home": settings.home}))
    written = logs.configure(settings.observability, settings.home_path)
    service = Service(settings, Watcher(folder, {}), written)
    yield Running(file, service)
    service.audit.close()
    service.state.close()
    written.close()


@pytest.mark.parametrize("path", FIELDS)
def test_each_field_is_taken_or_announced_as_needing_a_restart(running: Running, path: str) -> None:
    service, value = running.service, changed(path)
    before = value_of(service.settings, path)
    with capture_logs() as logged:
        taken = running.poll(path, value)
    try:
        now = value_of(service.settings, path)
        told = {entry["log_level"]: list(entry["fields"]) for entry in logged}
        if FIELDS[path]:
            assert taken
            assert json.loads(json.dumps(now)) == value != before
            assert told == {"info": [path]}
            if path.startswith(("serving.", "access.", "observability.")):
                assert IN_FORCE[path](service) == value
        else:
            assert not taken
            assert now == before
            assert told == {"warning": [path]}
    finally:
        running.poll(None)
    assert service.settings == Settings(home=service.settings.home)


def test_changes_are_audited_by_the_names_of_their_fields(running: Running) -> None:
    running.poll("serving.port", 9999)
    running.poll("serving.mode", "enforce")
    running.poll(None)
    running.service.audit.close()
    page = audit.read(running.service.audit.folder, action="configuration", limit=3)
    assert [(noted.action, noted.target) for noted in reversed(page.records)] == [
        ("configuration.needs_restart", "serving.port"),
        ("configuration.reloaded", "serving.mode"),
        ("configuration.reloaded", "serving.mode"),
    ]


def test_a_changed_limit_of_the_body_holds_on_every_route(publisher: Any) -> None:
    publisher.publish("v1")
    service = Service(publisher.settings)
    body = {"episode_id": "e", "step": 0, "extra": {f"signal-{n}": 1.0 for n in range(50)}}
    paths = ("decisions", "decisions/carried", "telemetry", "patterns", "patterns/search")
    with TestClient(service.gateway, raise_server_exceptions=False) as client:
        for limit, refused in ((100, True), (publisher.settings.serving.max_body_bytes, False)):
            serving = msgspec.structs.replace(publisher.settings.serving, max_body_bytes=limit)
            service.configure(msgspec.structs.replace(publisher.settings, serving=serving))
            for path in paths:
                answer = client.post(f"/v1/{path}", json=body)
                assert (answer.status_code == 413) == refused, (path, answer.text)
