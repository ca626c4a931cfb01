"""`drl patterns`: keys are listed, rotated and removed; nothing is removed that is needed."""

import datetime as dt
import json
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner, Result

from drl_cli.main import app
from drl_core.storage import patterns
from drl_core.storage.encryption import Keyring
from drl_core.storage.outbox import Outbox
from drl_core.storage.patterns import AttackPattern
from tests.postgres import FastPostgres


def pattern(step: int) -> AttackPattern:
    return AttackPattern(
        sandbox_id="s",
        episode_id="e",
        step=step,
        model_version="v1",
        features=[0.5] * 30,
        action=2,
        reward=1.0,
        attack_type="worm",
        confidence=0.9,
        time=dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC),
        metadata={"user": "jane"},
    )


@pytest.fixture
def home(tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DRL_HOME", str(tmp_path))
    monkeypatch.setenv("DRL_DATABASE_URL", postgres_url)
    monkeypatch.setenv("COLUMNS", "200")
    with psycopg.connect(postgres_url) as connection:
        connection.execute("TRUNCATE attack_patterns")
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["patterns", *arguments])


def test_a_key_is_removed_only_when_neither_database_nor_outbox_needs_it(
    home: Path, postgres_url: str
) -> None:
    keyring = Keyring(home / "keys")
    patterns.upsert(postgres_url, [pattern(n) for n in range(5)], keyring)
    outbox = Outbox(home / "state" / "outbox.sqlite")
    outbox.append(patterns.TOPIC, [patterns.queue(patterns.seal(pattern(9), keyring))])
    old = keyring.newest()
    assert "5 patterns were encrypted" in call("rotate-key").output
    assert "0 patterns were encrypted" in call("rotate-key", "--resume").output
    listed = json.loads(call("keys", "--json").output)
    new = keyring.newest()
    assert [(one["key_id"], one["patterns"]) for one in listed["keys"]] == [(old, 1), (new, 5)]
    refused = call("remove-key", old)
    assert "1 patterns need key" in str(refused.exception)
    outbox.remove([row.sequence for row in outbox.peek(9)])
    assert call("remove-key", old).exit_code == 0
    assert call("remove-key", new).exit_code == 1, "it is in use"
    assert call("remove-key", "feedfeedfeedfeed").exit_code == 1
    assert new in call("keys").output
    assert old not in call("keys").output


def test_what_was_set_aside_is_shown_and_goes_back_into_the_outbox(home: Path) -> None:
    outbox = Outbox(home / "state" / "outbox.sqlite")
    outbox.append("patterns", [("key", b"")])
    outbox.move_to_dead_letters(outbox.peek(1)[0].sequence, "refused")
    assert "refused" in call("dead-letters").output
    assert json.loads(call("dead-letters", "--json").output) == [
        {"topic": "patterns", "key": "key", "reason": "refused"}
    ]
    assert "1 rows requeued" in call("dead-letters", "--requeue").output
    assert "no dead letters" in call("dead-letters").output
    assert [row.key for row in outbox.peek(9)] == ["key"]


@pytest.mark.integration
def test_the_embedded_database_is_found_running_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRL_HOME", str(tmp_path))
    monkeypatch.delenv("DRL_DATABASE_URL", raising=False)
    assert "0 patterns were encrypted" in call("rotate-key").output, "started and migrated"
    keyring = Keyring(tmp_path / "keys")
    with FastPostgres(tmp_path / "postgres") as url:
        patterns.upsert(url, [pattern(1)], keyring)
        assert "1 patterns were encrypted" in call("rotate-key").output
