"""Whatever is sent: no failure of the service, no decision from a bad body, described answers.

The short form of what docs/robustness.md tells how to run in full.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from benchmarks import fuzz
from benchmarks.deployment import Deployment, free_port
from drl_serving.access.api_keys import KeyFile
from drl_serving.access.principal import SCOPES

HERE = Path(__file__).parent
BODIES = 400
EXAMPLES = 4
pytestmark = pytest.mark.integration


class Target(NamedTuple):
    deployment: Deployment
    key: str
    calls: str


@pytest.fixture(scope="module")
def target(
    tmp_path_factory: pytest.TempPathFactory, new_publisher: Callable[[Path], Any]
) -> Iterator[Target]:
    """A whole deployment that wants credentials, and a key with every scope."""
    home, port = tmp_path_factory.mktemp("fuzz"), free_port()
    new_publisher(home).publish("v1")
    key = KeyFile(home / "keys").create("test", SCOPES)[1]
    with Deployment(home, DRL_SERVING__GRPC_PORT=str(port)) as deployment:
        yield Target(deployment, key, f"127.0.0.1:{port}")


@pytest.mark.property(3)
@pytest.mark.parametrize("family", list(fuzz.FAMILIES))
def test_malformed_requests_meet_no_failure_and_no_decision(target: Target, family: str) -> None:
    found = fuzz.run(target.deployment.url, family, BODIES, 1, target.key)
    assert found.server_errors == []
    assert found.decided == []
    assert found.sent == BODIES
    assert len(found.statuses) > 1, "valid and refused requests were among them"
    assert target.deployment.answers()


@pytest.mark.parametrize("path", ["/v1/decisions", "/v1/decisions/carried", "/v1/telemetry"])
def test_a_body_that_says_it_is_compressed_is_not_read_as_it_is(target: Target, path: str) -> None:
    event = {"episode_id": "compressed", "step": 0}
    body = {"event": event} if path.endswith("carried") else event
    headers = {"Authorization": f"Bearer {target.key}", "Content-Encoding": "gzip"}
    answer = httpx.post(target.deployment.url + path, json=body, headers=headers)
    assert (answer.status_code, answer.json()["field"]) == (415, "Content-Encoding")


def test_the_api_answers_as_its_description_says(target: Target) -> None:
    """The checks of schemathesis, over every operation but the endless live feed.

    Without `ignored_auth`: guesses are throttled, which it takes for a failure; test_service_access
    holds that every route refuses them.
    """
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "--config-file"),
            *(HERE / "schemathesis.toml", "run", f"{target.deployment.url}/schema/openapi.json"),
            *("--checks", "all", "--exclude-checks", "ignored_auth"),
            *("--header", f"Authorization: Bearer {target.key}"),
            *("--max-examples", str(EXAMPLES), "--seed", "1", "--no-color"),
            *("--generation-database", "none", "--request-timeout", "30"),
        ],
        cwd=target.deployment.home,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    assert "No issues found" in done.stdout or "passed" in done.stdout
