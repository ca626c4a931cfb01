"""`drl keys`: what it prints opens the door, and what it does is noted."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from drl_cli.main import app
from drl_core.settings import Settings
from drl_serving.access.api_keys import ApiKeyring, KeyFile
from drl_serving.audit import log


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DRL_HOME", str(tmp_path))
    return tmp_path


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["keys", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def made(*arguments: str) -> dict[str, Any]:
    created: dict[str, Any] = json.loads(run(*arguments, "--json"))
    return created


def ring(home: Path) -> ApiKeyring:
    return ApiKeyring(KeyFile(Settings(home=str(home)).keys_path).read())


@pytest.mark.property(44)
def test_a_key_lives_from_create_to_revoke_and_each_act_is_noted(home: Path) -> None:
    first = made("create", "--name", "console", "--scope", "decide", "--scope", "review")
    principal, _ = ring(home).verify(first["key"].encode()) or pytest.fail("not accepted")
    assert principal.scopes == {"decide", "review"}
    second = made("rotate", first["id"], "--grace", "1h")
    assert ring(home).verify(first["key"].encode())
    assert ring(home).verify(second["key"].encode())
    run("revoke", first["id"])
    assert ring(home).verify(second["key"].encode()) is None
    listed = run("list") + run("list", "--json")
    for secret in (first["key"], second["key"]):
        assert secret[13:] not in listed
    assert "console" in listed
    assert "revoked" in listed
    noted = log.read(home / "audit").records
    assert [record.action for record in noted] == ["keys.revoked", "keys.rotated", "keys.created"]
    assert {record.target for record in noted} == {f"key:{first['id']}"}


def test_a_key_is_printed_on_one_line(home: Path) -> None:
    printed = run("create", "--name", "a", "--scope", "ingest", "--expires", "90d")
    assert ring(home).verify(printed.strip().encode())
    assert "valid until" in run("list")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("create", "--name", "a", "--scope", "all"), "scope"),
        (("create", "--name", "a", "--scope", "decide", "--expires", "soon"), "expires"),
        (("create", "--name", "a", "--scope", "decide", "--expires", "2020-01-01"), "expires"),
        (("revoke", "00000000"), "00000000"),
        (("rotate", "00000000", "--grace", "long"), "long"),
    ],
)
def test_what_cannot_be_done_is_told(home: Path, arguments: tuple[str, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        CliRunner().invoke(app, ["keys", *arguments], catch_exceptions=False)
    assert not (home / "audit").exists()
