"""Releases: what is taken, what is refused, and that a reload is never seen half done."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litestar import Litestar
from litestar.testing import TestClient
from onnx import TensorProto, helper

from drl_core.release.errors import BundleError
from drl_core.release.manifest import Golden, sign_manifest
from drl_core.release.signing_keys import signing_key, trusted_keys
from drl_core.settings import Serving, Settings, SettingsError
from drl_serving.access.service import require_credentials
from drl_serving.app import create_app
from drl_serving.models.holder import ModelHolder
from drl_serving.observability.metrics import Metrics

Client = TestClient[Litestar]
EVENT = {"episode_id": "e", "step": 0, "syscall_count": 10}


def reloads(client: Client | httpx.Client, result: str) -> float:
    wanted = f'drl_model_reloads_total{{result="{result}"}}'
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(wanted))


@pytest.fixture
def holder(publisher: Any) -> ModelHolder:
    publisher.publish("v1")
    holder = ModelHolder(publisher.settings, Metrics())
    assert asyncio.run(holder.poll())
    return holder


def refusal(holder: ModelHolder) -> str | None:
    """Why the holder refused what it sees now; the first model must be serving still."""
    before = holder.current
    taken = asyncio.run(holder.poll())
    assert not taken
    assert holder.current is before
    assert before is not None
    assert before.manifest.model_version == "v1"
    samples = next(iter(holder._metrics.reloads.collect())).samples
    reasons = {s.labels["result"] for s in samples if s.name.endswith("_total") and s.value} - {
        "loaded"
    }
    return reasons.pop() if reasons else None


def test_the_manifest_is_told_without_its_golden_rows(client: Client, publisher: Any) -> None:
    publisher.publish("v2", 1.0)
    current = client.get("/v1/models/current").json()
    assert "golden" not in current
    assert current["hidden_layers"] == [32, 32]
    listed = client.get("/v1/models").json()
    assert [(r["sequence"], r["model_version"]) for r in listed] == [(2, "v2"), (1, "v1")]
    assert [r["refused"] for r in listed] == [None, None]
    bad = client.get("/v1/models", params={"limit": 0})
    assert (bad.status_code, bad.json()["field"]) == (400, "limit")


def test_a_new_release_is_served_and_episodes_go_on(start_service: Any, publisher: Any) -> None:
    publisher.publish("v1")
    with start_service(publisher.settings.home_path) as service:
        first = service.client.post("/v1/decisions", json=EVENT).json()
        assert first["model_version"] == "v1"
        publisher.publish("v2", 1.0)
        service.wait_until(lambda: service.version() == "v2")
        second = service.client.post("/v1/decisions", json={**EVENT, "step": 1}).json()
        assert (second["model_version"], second["sequence"]) == ("v2", 2)
        assert service.client.post("/v1/decisions", json={**EVENT, "step": 1}).json() == second


def test_the_first_release_after_the_start_is_taken(start_service: Any, publisher: Any) -> None:
    with start_service(publisher.settings.home_path) as service:
        assert service.client.post("/v1/decisions", json=EVENT).status_code == 503
        publisher.publish("v1")
        service.wait_until(lambda: service.version() == "v1")
        assert service.client.post("/v1/decisions", json=EVENT).status_code == 200


@pytest.mark.property(39)
def test_no_request_fails_during_reloads_and_answers_match_their_version(
    start_service: Any, publisher: Any
) -> None:
    publisher.publish("v0")
    models = {n: publisher.model(float(n)) for n in range(1, 31)}
    quick = {"DRL_SERVING__RELOAD_INTERVAL_S": "0.01"}
    with start_service(publisher.settings.home_path, **quick) as run:
        base = run.client.post("/v1/decisions", json={**EVENT, "episode_id": "base"}).json()
        expected = np.array(base["q_values"])
        stop, failures, seen = threading.Event(), list[str](), set[str]()

        def ask(name: str) -> None:
            with httpx.Client(base_url=run.client.base_url, timeout=60) as client:
                number = 0
                while not stop.is_set():
                    number += 1
                    body = {**EVENT, "episode_id": f"{name}-{number}"}
                    answer = client.post("/v1/decisions", json=body)
                    if answer.status_code != 200:
                        failures.append(answer.text)
                        continue
                    decision = answer.json()
                    version = decision["model_version"]
                    seen.add(version)
                    offset = float(version.removeprefix("v"))
                    if not np.allclose(decision["q_values"], expected + offset, atol=1e-4):
                        failures.append(f"{version}: {decision['q_values']}")

        threads = [threading.Thread(target=ask, args=(f"t{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for number, model in models.items():
            version = f"v{number}"
            publisher.publish(version, float(number), model=model)
            if number % 5 == 0:  # a hostile one between
                publisher.store.current_path.write_bytes(b'{"manifest": {}}')
            else:
                run.wait_until(lambda version=version: run.version() == version)
        publisher.publish("v99", 99.0)
        run.wait_until(lambda: run.version() == "v99")
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures
        assert len(seen) > 10
        assert reloads(run.client, "format") >= 1


def changed_byte(publisher: Any) -> None:
    publisher.publish("bad")
    content = publisher.store.current_path.read_bytes()
    at = content.index(b'"preset":"default"') + 11
    publisher.store.current_path.write_bytes(content[:at] + b"x" + content[at + 1 :])


def foreign_signature(publisher: Any) -> None:
    publisher.publish("bad", key=Ed25519PrivateKey.generate())


def missing_signature(publisher: Any) -> None:
    publisher.publish("bad")
    envelope = msgspec.json.decode(publisher.store.current_path.read_bytes())
    del envelope["signature"]
    publisher.store.current_path.write_bytes(msgspec.json.encode(envelope))


def wrong_checksum(publisher: Any) -> None:
    manifest = publisher.publish("bad", 1.0)
    (publisher.store.root / manifest.blob).write_bytes(publisher.model(2.0))


def blob_gone(publisher: Any) -> None:
    manifest = publisher.publish("bad", 1.0)
    (publisher.store.root / manifest.blob).unlink()


def path_outside_the_store(publisher: Any) -> None:
    manifest = publisher.publish("bad", 1.0)
    away = msgspec.structs.replace(manifest, blob="../../etc/passwd")
    key = signing_key(publisher.settings.keys_path)
    publisher.store.current_path.write_bytes(sign_manifest(away, key))


def same_number_again(publisher: Any) -> None:
    """Signed by the right key, but under the number that is served already."""
    released = publisher.publish("bad", 1.0)
    again = msgspec.structs.replace(released, sequence=1)
    key = signing_key(publisher.settings.keys_path)
    publisher.store.current_path.write_bytes(sign_manifest(again, key))


def unknown_features(publisher: Any) -> None:
    signed = publisher.publish("bad")
    other = msgspec.structs.replace(signed, features_version=2)
    publisher.store.current_path.write_bytes(
        sign_manifest(other, signing_key(publisher.settings.keys_path))
    )


def wrong_golden(publisher: Any) -> None:
    publisher.publish("bad", 1.0, golden=publisher.golden)


def no_golden(publisher: Any) -> None:
    publisher.publish("bad", golden=Golden(windows=[], carry=[], q_values=[]))


def not_a_graph(publisher: Any) -> None:
    publisher.publish("bad", model=b"not a graph")


def other_names(publisher: Any) -> None:
    model = onnx.load_from_string(publisher.model())
    last = next(node for node in model.graph.node if "q_values" in node.output)
    last.output[0] = "scores"
    next(o for o in model.graph.output if o.name == "q_values").name = "scores"
    publisher.publish("bad", model=model.SerializeToString())


def other_width(publisher: Any) -> None:
    model = onnx.load_from_string(publisher.model())
    last = next(node for node in model.graph.node if "q_values" in node.output)
    last.output[0] = "five"
    output = next(o for o in model.graph.output if o.name == "q_values")
    output.type.tensor_type.shape.dim[1].dim_value = 10
    model.graph.node.append(helper.make_node("Concat", ["five", "five"], ["q_values"], axis=1))
    publisher.publish("bad", model=model.SerializeToString())


def other_type(publisher: Any) -> None:
    model = onnx.load_from_string(publisher.model())
    last = next(node for node in model.graph.node if "q_values" in node.output)
    last.output[0] = "single"
    output = next(o for o in model.graph.output if o.name == "q_values")
    output.type.tensor_type.elem_type = TensorProto.DOUBLE
    model.graph.node.append(
        helper.make_node("Cast", ["single"], ["q_values"], to=TensorProto.DOUBLE)
    )
    publisher.publish("bad", model=model.SerializeToString())


@pytest.mark.property(35)
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (changed_byte, "signature"),
        (foreign_signature, "unknown_key"),
        (missing_signature, "format"),
        (wrong_checksum, "checksum"),
        (blob_gone, "blob_missing"),
        (path_outside_the_store, "blob_path"),
        (same_number_again, "sequence"),
        (unknown_features, "features_version"),
        (wrong_golden, "golden"),
        (no_golden, "golden"),
        (not_a_graph, "graph"),
        (other_names, "shape"),
        (other_width, "shape"),
        (other_type, "shape"),
    ],
)
def test_an_unsound_release_is_refused_by_name_and_the_old_model_serves(
    holder: ModelHolder, publisher: Any, spoil: Callable[[Any], None], reason: str
) -> None:
    spoil(publisher)
    assert refusal(holder) == reason
    assert not asyncio.run(holder.poll()), "a refused release is not tried over and over"
    publisher.publish("v9", 9.0)
    assert asyncio.run(holder.poll()), "a sound release after it is taken"


@pytest.mark.property(35)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), of_blob=st.booleans())
def test_any_changed_byte_is_refused(
    holder: ModelHolder, publisher: Any, at: float, flip: int, of_blob: bool
) -> None:
    manifest = publisher.publish("bad", 1.0)
    path = publisher.store.root / manifest.blob if of_blob else publisher.store.current_path
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= flip
    path.write_bytes(content)
    assert refusal(holder) is not None


def test_an_older_release_is_never_taken_again(publisher: Any) -> None:
    publisher.publish("v1")
    old = publisher.store.current_path.read_bytes()
    publisher.publish("v2", 1.0)
    holder = ModelHolder(publisher.settings, Metrics())
    asyncio.run(holder.poll())
    publisher.store.current_path.write_bytes(old)
    assert not asyncio.run(holder.poll())
    assert holder.current is not None
    assert holder.current.manifest.model_version == "v2"
    publisher.store.current_path.unlink()
    assert not asyncio.run(holder.poll())
    assert holder.current is not None


def test_a_key_that_becomes_trusted_makes_its_release_served(publisher: Any) -> None:
    publisher.publish("v1")
    trusted = next((publisher.settings.keys_path / "trusted").glob("*.pub"))
    key = trusted.read_bytes()
    trusted.write_bytes(b"no key")
    holder = ModelHolder(publisher.settings, Metrics())
    assert not asyncio.run(holder.poll())
    trusted.unlink()
    assert not asyncio.run(holder.poll())
    trusted.write_bytes(key)
    assert asyncio.run(holder.poll())


PUBLISH_FOREVER = """
import pathlib, sys
from drl_core.release.signing_keys import signing_key, trusted_keys
from drl_core.release.store import ModelStore
store, keys = ModelStore(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2])
release = store.load(trusted_keys(keys))
key = signing_key(keys)
print("ready", flush=True)
while True:
    store.publish(release.model + b"", release.manifest, key)
"""


@pytest.mark.property(37)
@pytest.mark.integration
def test_a_publisher_killed_at_any_moment_leaves_a_whole_release(
    publisher: Any, tmp_path: Path
) -> None:
    publisher.publish("v1")
    holder = ModelHolder(publisher.settings, Metrics())
    asyncio.run(holder.poll())
    folders = [str(publisher.store.root), str(publisher.settings.keys_path)]
    rng = np.random.default_rng(0)
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", PUBLISH_FOREVER, *folders], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        until = time.monotonic() + rng.uniform(0, 0.15)
        while time.monotonic() < until:
            asyncio.run(holder.poll())
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        before = holder.current
        asyncio.run(holder.poll())
        assert holder.current is not None
        assert before is not None
        assert holder.current.manifest.sequence >= before.manifest.sequence
    samples = next(iter(holder._metrics.reloads.collect())).samples
    assert {s.labels["result"] for s in samples} == {"loaded"}, "nothing was ever refused"
    assert holder.current is not None
    assert holder.current.manifest.sequence > 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])  # noqa: S104
def test_the_service_listens_on_this_machine_only(host: str) -> None:
    with pytest.raises(SettingsError, match=r"serving\.host"):
        create_app(Settings(serving=Serving(host=host)))
    for good in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        require_credentials(Settings(serving=Serving(host=good)))


def test_a_broken_trusted_key_is_a_named_refusal(publisher: Any) -> None:
    publisher.publish("v1")
    (publisher.settings.keys_path / "trusted" / "x.pub").write_bytes(b"no key")
    with pytest.raises(BundleError, match="trusted_key"):
        trusted_keys(publisher.settings.keys_path)


def test_every_route_is_described(client: Client) -> None:
    answer = client.get("/schema/openapi.json")
    assert answer.status_code == 200, answer.text
    described = answer.json()
    operations = [op for path in described["paths"].values() for op in path.values()]
    names = [op["operationId"] for op in operations]
    assert len(set(names)) == len(names) >= 17
    event = described["paths"]["/v1/decisions"]["post"]["requestBody"]["content"]
    assert "syscall_count" in str(event["application/json"]["schema"])
    assert client.get("/schema").status_code == 200
    assert "problem+json" in str(described)


def test_an_unknown_path_is_a_problem(client: Client) -> None:
    for answer, status in ((client.get("/v9"), 404), (client.put("/v1/decisions"), 405)):
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["next"]
    assert 'route="unmatched",status="404"' in client.get("/metrics").text
