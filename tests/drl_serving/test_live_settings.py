"""The service follows its configuration files while it runs."""

from pathlib import Path

from drl_core.settings import Settings, Watcher
from drl_serving.live_settings import LiveSettings


def test_a_change_is_taken_by_all_and_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "default.json"
    file.write_text('{"serving": {"mode": "observe"}}')
    taken: list[Settings] = []
    live = LiveSettings(Watcher(tmp_path, {}), [taken.append, taken.append])
    assert not live.poll()
    file.write_text('{"serving": {"mode": "enforce", "max_batch": 7}}')
    assert live.poll()
    assert [(s.serving.mode, s.serving.max_batch) for s in taken] == [("enforce", 7)] * 2
    file.write_text('{"serving": {"mode": "sometimes"}}')
    assert not live.poll()
    assert len(taken) == 2
    file.write_text('{"serving": {"mode": "observe", "max_batch": 8}} ')
    assert live.poll()
    assert taken[-1].serving.max_batch == 8
