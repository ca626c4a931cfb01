"""`drl similar` against a running service with a real database."""

import datetime as dt
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from typer.testing import CliRunner

from drl_assets.sources.importer import read_events
from drl_assets.sources.synthetic import create_sample_telemetry_file
from drl_assets.tables import transforms
from drl_cli.local.embedded_postgres import EmbeddedPostgres
from drl_cli.main import app
from drl_core.migrations import migrate
from drl_core.settings import Settings
from drl_core.storage.encryption import Keyring
from drl_core.storage.patterns import AttackPattern, upsert
from drl_serving.app import create_app


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "new.jsonl"
    create_sample_telemetry_file(path, 2, 5, seed=3)
    return path


@pytest.fixture
def service(tmp_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A service whose database holds the last state of the recording's first episode."""
    frame = transforms.telemetry_frame([list(read_events([recording]))]).frame
    states = transforms.state_frame(frame).frame
    first = states.filter(states["episode_id"] == "0")
    pattern = AttackPattern(
        sandbox_id="then",
        episode_id="7",
        step=4,
        model_version="v1",
        features=first["state"][-1].to_list(),
        action=3,
        reward=0.0,
        attack_type="ransomware",
        confidence=0.93,
        time=dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC),
    )
    with EmbeddedPostgres(tmp_path / "home") as url, socket.socket() as free:
        migrate(url)
        upsert(url, [pattern], Keyring(tmp_path / "home/keys"))
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        monkeypatch.setenv("DRL_SERVING__PORT", str(port))
        settings = Settings(home=str(tmp_path / "home"), database_url=url)
        server = uvicorn.Server(
            uvicorn.Config(create_app(settings), port=port, log_config=None, lifespan="on")
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield
        server.should_exit = True
        thread.join()


@pytest.mark.usefixtures("service")
def test_the_nearest_pattern_of_each_episode_is_told(recording: Path) -> None:
    answer = CliRunner().invoke(app, ["similar", str(recording), "--json"])
    assert answer.exit_code == 0, answer.output
    found = {one["episode_id"]: one["nearest"] for one in json.loads(answer.output)}
    assert found.keys() == {"0", "1"}
    assert found["0"][0]["distance"] == pytest.approx(0, abs=1e-6)
    assert found["1"][0]["distance"] > 0.01
    table = CliRunner().invoke(app, ["similar", str(recording)])
    assert "ransomware" in table.output
    assert "quarantine_file" in table.output


def test_without_a_service_the_way_to_start_one_is_told(
    recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRL_SERVING__PORT", "1")
    answer = CliRunner().invoke(app, ["similar", str(recording)])
    assert isinstance(answer.exception, ValueError)
    assert "drl up" in str(answer.exception)
