"""The service follows its configuration files while it runs."""

from pathlib import Path

from drl_core.settings import Watcher
from drl_serving.configuration import LiveSettings
from drl_serving.decisions.episodes import EpisodeStore
from drl_serving.decisions.service import DecisionService
from drl_serving.telemetry.service import TelemetryService


def test_a_changed_mode_is_taken_and_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "default.json"
    file.write_text('{"serving": {"mode": "observe"}}')
    watcher = Watcher(tmp_path, {})
    decisions = DecisionService(EpisodeStore(10), "observe")
    telemetry = TelemetryService(tmp_path / "landing", 10)
    live = LiveSettings(watcher, decisions, telemetry)
    assert not live.poll()
    file.write_text('{"serving": {"mode": "enforce", "max_batch": 7}}')
    assert live.poll()
    assert (decisions.mode, telemetry.max_records) == ("enforce", 7)
    file.write_text('{"serving": {"mode": "sometimes"}}')
    assert not live.poll()
    assert decisions.mode == "enforce"
    file.write_text('{"serving": {"mode": "observe", "max_batch": 8}} ')
    assert live.poll()
    assert decisions.mode == "observe"
