"""Models by version and the way back over HTTP, and the commands that do the same."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from drl_cli.main import app
from drl_core.release import signing_keys
from drl_core.release.store import ModelStore


@pytest.mark.integration
def test_a_rollback_over_http_serves_the_model_before(start_service: Any, publisher: Any) -> None:
    for number in (1, 2):
        publisher.publish(f"v{number}", float(number))
    with start_service(publisher.settings.home_path) as service:
        service.wait_until(lambda: service.version() == "v2")
        http = service.client
        old = http.get("/v1/models/v1").json()
        assert (old["manifest"]["model_version"], old["serving"], old["loaded"]) == (
            "v1",
            False,
            False,
        )
        assert "golden" not in old["manifest"]
        assert http.get("/v1/models/v2").json()["serving"]
        assert http.get("/v1/models/v77").status_code == 404
        back = http.post("/v1/models/rollback")
        assert back.json() == {"model_version": "v1", "sequence": 3, "rollback_of": "v2"}
        service.wait_until(lambda: "drl_model_sequence 3.0" in http.get("/metrics").text)
        assert http.post("/v1/models/rollback").status_code == 409
        (publisher.settings.keys_path / "signing.pem").unlink()
        refused = http.post("/v1/models/rollback")
        assert (refused.status_code, refused.json()["type"]) == (
            409,
            "urn:drl:problem:no-signing-key",
        )
        assert "drl bundle rollback" in refused.json()["next"]


def test_the_commands_challenge_promote_prune_rotate_and_distrust(
    publisher: Any, new_publisher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRL_HOME", str(tmp_path))
    run = CliRunner()

    def drl(*arguments: str) -> str:
        result = run.invoke(app, ["bundle", *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    store = publisher.store
    publisher.publish("v1")
    bundle = new_publisher(tmp_path / "bundle")
    bundle.store = ModelStore(tmp_path / "bundle")
    bundle.publish("v2", 2.0, key=signing_keys.signing_key(tmp_path / "bundle" / "keys"))
    drl("challenge", str(tmp_path / "bundle"))
    trusted = signing_keys.trusted_keys(publisher.settings.keys_path)
    assert store.load(trusted).manifest.model_version == "v1"
    drl("promote", "v2")
    assert store.load(trusted).manifest.model_version == "v2"
    (old,) = trusted
    drl("rotate-key")
    now = store.load(signing_keys.trusted_keys(publisher.settings.keys_path))
    assert (now.manifest.model_version, now.key_id != old) == ("v2", True)
    drl("distrust", old)
    assert old not in signing_keys.trusted_keys(publisher.settings.keys_path)
    drl("verify", str(store.root))
    drl("prune", "--keep", "3")
    assert len(store.releases()) == 1
