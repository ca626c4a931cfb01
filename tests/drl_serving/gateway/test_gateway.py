"""The gateway: the fast path is byte-equal to the framework's way, late requests get 408."""

import asyncio
import contextlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litestar.testing import TestClient

from drl_core.settings import Serving, Settings
from drl_serving.app import Service
from drl_serving.gateway.gateway import Gateway
from tests import strategies

JSON = {"Content-Type": "application/json"}
OCTETS = {"Content-Type": "application/octet-stream"}
examples = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def framework_only(gateway: Gateway) -> Gateway:
    """The same service without the lean way."""
    gateway._fast_paths = {}
    return gateway


@contextlib.contextmanager
def both_ways(publisher: Any, tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """Two services of one model, each with a state of its own: lean, and the framework alone."""
    publisher.publish("v1")
    other = tmp_path / "other"
    other.mkdir()
    home = Path(publisher.settings.home)
    for name in ("models", "keys"):
        (other / name).symlink_to(home / name)
    lean = Service(publisher.settings).gateway
    framework = framework_only(Service(Settings(home=str(other))).gateway)
    with TestClient(lean) as one, TestClient(framework) as two:
        yield one, two


def comparable(answer: httpx.Response) -> tuple[int, dict[str, str], Any]:
    """What must be equal: all but the time, the ids and the trace."""
    headers = {k: v for k, v in answer.headers.items() if k not in ("date", "traceparent")}
    body = answer.json()
    body.pop("decision_id", None)
    return answer.status_code, headers, body


@examples
@given(data=st.data())
def test_the_lean_way_answers_as_the_framework_does(
    clients: tuple[Any, Any], data: st.DataObject
) -> None:
    event = data.draw(strategies.events())
    text = msgspec.json.encode(event)
    cut = data.draw(st.sampled_from([len(text), len(text), len(text), len(text) // 2, 0]))
    prefix = data.draw(st.sampled_from([b"", b"", b"", b" ", b"{", b"[", b"\xff"]))
    kind = data.draw(st.sampled_from([JSON, JSON, JSON, {"Content-Type": "text/plain"}, {}]))
    body = prefix + text[:cut]
    one, two = (c.post("/v1/decisions", content=body, headers=kind) for c in clients)
    assert comparable(one) == comparable(two)
    if one.status_code == 200 and isinstance(one.json(), dict):
        ids = [answer.json()["decision_id"].encode() for answer in (one, two)]
        assert one.content.replace(ids[0], b"") == two.content.replace(ids[1], b"")


_BOUNDS = st.sampled_from([0.0, 0.0, 0.0, 1.0, 0.5, -1.0, 1e300, float("nan")])


@examples
@given(data=st.data())
def test_rows_and_inference_answer_as_the_framework_does(
    clients: tuple[Any, Any], data: st.DataObject
) -> None:
    count = data.draw(st.sampled_from([1, 1, 2, 3, 500]))
    table = np.zeros((count, 28))
    table[:, 12] = 1.0
    table[data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, 27))] = data.draw(_BOUNDS)
    raw = data.draw(st.sampled_from([b"", b"", b"", b"x"])) + table.astype("<f8").tobytes()
    kind = data.draw(st.sampled_from([OCTETS, OCTETS, JSON, {}]))
    one, two = (c.post("/v1/decisions/rows", content=raw, headers=kind) for c in clients)
    assert verbatim(one) == verbatim(two)

    columns = {"windows": table[:, :14], "carry": table[:, 14:]}
    binary = data.draw(st.booleans())
    tensors: list[dict[str, Any]] = []
    for name, part in columns.items():
        about = {"name": name, "datatype": "FP64", "shape": [count, 14]}
        values: dict[str, Any] = {"data": [None if np.isnan(one) else one for one in part.ravel()]}
        if binary:
            values = {"parameters": {"binary_data_size": part.size * 8}}
        tensors.append(about | values)
    text = json.dumps({"id": "7", "inputs": tensors, "parameters": {"binary_data_output": binary}})
    body, headers = text.encode(), data.draw(st.sampled_from([JSON, {}]))
    if binary:
        headers = OCTETS | {"Inference-Header-Content-Length": str(len(body))}
        body += b"".join(np.ascontiguousarray(part).tobytes() for part in columns.values())
    if data.draw(st.booleans()):
        body, headers = zlib.compress(body), headers | {"Content-Encoding": "deflate"}
    path = data.draw(st.sampled_from(["drl-policy", "drl-policy", "other"]))
    one, two = (c.post(f"/v2/models/{path}/infer", content=body, headers=headers) for c in clients)
    assert verbatim(one) == verbatim(two)


def verbatim(answer: httpx.Response) -> tuple[int, dict[str, str], bytes]:
    """What must be equal where answers have no ids."""
    headers = {k: v for k, v in answer.headers.items() if k not in ("date", "traceparent")}
    return answer.status_code, headers, answer.content


@pytest.fixture
def clients(publisher: Any, tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    with both_ways(publisher, tmp_path) as pair:
        yield pair


async def ask(gateway: Gateway, receive: Any, path: str = "/v1/decisions") -> list[dict[str, Any]]:
    """One request, by ASGI itself."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Any = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "scheme": "http",
        "http_version": "1.1",
        "extensions": {},
        "state": {},
    }
    await gateway(scope, receive, send)
    return sent


async def never() -> Any:
    await asyncio.sleep(3600)


def test_a_request_that_does_not_come_is_ended_with_408(publisher: Any) -> None:
    publisher.publish("v1")
    gateway = Service(publisher.settings).gateway
    gateway.timeout_s = 0.2

    async def scenario() -> list[dict[str, Any]]:
        watching = asyncio.create_task(gateway.cancel_overdue_requests())
        try:
            return await ask(gateway, never)
        finally:
            watching.cancel()

    start, body = asyncio.run(scenario())
    assert start["status"] == 408
    assert json.loads(body["body"])["type"] == "urn:drl:problem:request-timeout"
    assert not gateway._running
    assert not gateway._overdue


def statuses(answers: list[list[dict[str, Any]]]) -> list[int]:
    return [answer[0]["status"] for answer in answers]


def test_requests_above_the_in_flight_limit_are_refused_with_retry_after(publisher: Any) -> None:
    publisher.publish("v1")
    service = Service(publisher.settings)
    gateway = service.gateway
    gateway.shedder.max_in_flight = 5

    async def receive() -> Any:
        return {"type": "http.request", "body": b'{"episode_id": 1, "step": 0}'}

    async def burst(path: str, count: int) -> list[list[dict[str, Any]]]:
        return await asyncio.gather(*(ask(gateway, receive, path) for _ in range(count)))

    async def scenario() -> list[list[list[dict[str, Any]]]]:
        await service.models.poll()
        return [await burst("/v1/decisions", 20), await burst("/v1/decisions", 5)]

    many, few = asyncio.run(scenario())
    assert statuses(many) == [200] * 5 + [503] * 15
    assert statuses(few) == [200] * 5, "the places are free again"
    refused = many[-1]
    assert (b"retry-after", b"1") in refused[0]["headers"]
    assert json.loads(refused[1]["body"])["type"] == "urn:drl:problem:overloaded"
    assert gateway.shedder.in_flight == 0


def test_who_sends_slowly_takes_no_place_and_open_paths_are_never_shed(publisher: Any) -> None:
    publisher.publish("v1")
    service = Service(publisher.settings)
    gateway = service.gateway
    gateway.shedder.max_in_flight = 1

    async def receive() -> Any:
        return {"type": "http.request", "body": b'{"episode_id": 1, "step": 0}'}

    async def scenario() -> list[list[dict[str, Any]]]:
        await service.models.poll()
        slow = [asyncio.create_task(ask(gateway, never)) for _ in range(3)]
        await asyncio.sleep(0)
        answers = [await ask(gateway, receive)]
        with gateway.shedder:
            answers += [await ask(gateway, receive), await ask(gateway, receive, "/health/live")]
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        return answers

    assert statuses(asyncio.run(scenario())) == [200, 503, 405]  # a POST, which liveness is not


def test_every_answer_has_the_security_headers_and_a_trace(publisher: Any) -> None:
    publisher.publish("v1")
    trace = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    with TestClient(Service(publisher.settings).gateway) as client:
        for method, path in (
            ("GET", "/health/live"),
            ("POST", "/v1/decisions"),
            ("GET", "/v1/models/current"),
            ("GET", "/nowhere"),
        ):
            answer = client.request(method, path, headers={"traceparent": trace})
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["traceparent"].split("-")[1] == "ab" * 16
            assert answer.headers["traceparent"] != trace


@pytest.mark.property(44)
@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example:8000"}, {"Origin": "null"}],
)
def test_where_nobody_needs_credentials_another_sites_page_cannot_act(
    publisher: Any, headers: dict[str, str]
) -> None:
    publisher.publish("v1")
    publisher.publish("v2")
    with TestClient(Service(publisher.settings).gateway) as client:
        for path in (
            "/v1/models/rollback",
            "/v1/decisions",
            "/v2/repository/models/drl-policy/unload",
        ):
            answer = client.post(path, headers=headers)
            assert (answer.status_code, answer.json()["type"]) == (
                403,
                "urn:drl:problem:other-site",
            )
        assert client.get("/v1/models/current").json()["model_version"] == "v2"
        own = {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
        body = {"episode_id": "own", "step": 0}
        assert client.post("/v1/decisions", json=body, headers=own).status_code == 200


def test_limits_follow_the_configuration(publisher: Any) -> None:
    publisher.publish("v1")
    service = Service(publisher.settings)
    service.configure(
        Settings(
            home=publisher.settings.home,
            serving=Serving(
                mode="enforce",
                sandbox_modes={"lab": "observe"},
                max_batch=7,
                max_in_flight=40,
                request_timeout_s=3,
                containment_margin=0.5,
                decision_log_share=0.25,
                max_body_bytes=100,
            ),
        )
    )
    rules = service.decisions.rules
    assert (rules.mode_of("any"), rules.mode_of("lab")) == ("enforce", "observe")
    assert (rules.containment_margin, rules.decision_log_share) == (0.5, 0.25)
    assert service.limits.max_batch == 7
    assert (service.gateway.shedder.max_in_flight, service.gateway.timeout_s) == (40, 3)
    assert service.gateway.max_body == 100


@pytest.mark.property(38)
def test_a_decision_waits_for_nothing(publisher: Any) -> None:
    """No disk, no database, no thread: the answer is there as soon as the loop's turn ends.

    How long that takes under load is what `python -m benchmarks.serving` prints.
    """
    publisher.publish("v1")
    service = Service(publisher.settings)

    async def scenario() -> None:
        await service.models.poll()
        for step in range(20):
            body = json.dumps({"episode_id": "e", "step": step}).encode()

            async def receive(body: bytes = body) -> Any:
                return {"type": "http.request", "body": body}

            asking = asyncio.create_task(ask(service.gateway, receive))
            for _ in range(3):  # asked, decided, answered
                await asyncio.sleep(0)
            start, answer = asking.result()
            assert start["status"] == 200
            assert json.loads(answer["body"])["step"] == step

    asyncio.run(scenario())
