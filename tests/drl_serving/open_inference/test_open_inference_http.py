"""Triton's own HTTP client against the real service, and what the protocol refuses."""

import gzip
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from drl_assets.learning.export.onnx_export import sample_windows
from drl_core.policy.features import Array
from drl_serving.open_inference.service import NAME

INFER = f"/v2/models/{NAME}/infer"


@pytest.fixture(scope="module")
def released(new_publisher: Any, tmp_path_factory: Any) -> Any:
    """A store with one release."""
    publisher = new_publisher(tmp_path_factory.mktemp("open_inference"))
    publisher.publish("v1")
    return publisher


@pytest.fixture(scope="module")
def service(released: Any, start_service: Any) -> Iterator[Any]:
    """A running service that took v1, then v2."""
    with start_service(released.settings.home_path) as service:
        both = 'version="v1"} 2.0'  # of both workers: each holds what it has taken itself
        service.wait_until(lambda: both in service.client.get("/metrics").text)
        released.publish("v2", 2.0)
        service.wait_until(lambda: "drl_model_sequence 2.0" in service.client.get("/metrics").text)
        yield service


@pytest.fixture
def client(service: Any) -> Iterator[triton.InferenceServerClient]:
    address = str(service.client.base_url).removeprefix("http://").rstrip("/")
    with triton.InferenceServerClient(address, concurrency=4) as client:
        yield client


@pytest.fixture
def expected(released: Any) -> dict[str, Array]:
    return answers(released, *sample_windows(8, 3))


def answers(publisher: Any, windows: Array, carry: Array, offset: float = 2.0) -> dict[str, Array]:
    """What ONNX Runtime says of the graph that was published."""
    from drl_assets.learning.export.onnx_export import session

    names = ["q_values", "features", "carry_after"]
    found = session(publisher.model(offset)).run(names, {"windows": windows, "carry": carry})
    return dict(zip(names, found, strict=True))


def inputs(rows: int = 8, *, binary: bool = True, seed: int = 3) -> list[triton.InferInput]:
    tables = sample_windows(rows, seed)
    made = []
    for name, table in zip(("windows", "carry"), tables, strict=True):
        given = np.nan_to_num(table) if not binary else table
        made.append(triton.InferInput(name, list(given.shape), "FP64"))
        made[-1].set_data_from_numpy(given, binary_data=binary)
    return made


def test_every_ordinary_call_of_tritons_client_passes(
    client: triton.InferenceServerClient, expected: dict[str, Array]
) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(NAME)
    assert client.is_model_ready(NAME, "v1")
    assert client.get_server_metadata()["name"] == "drl-sandbox-policy"
    metadata = client.get_model_metadata(NAME)
    assert metadata["versions"][:2] == ["v2", "v1"]
    assert [i["shape"] for i in metadata["inputs"]] == [[-1, 14], [-1, 14]]
    assert {o["name"]: o["datatype"] for o in metadata["outputs"]} == {
        "q_values": "FP32",
        "features": "FP32",
        "carry_after": "FP64",
    }
    assert client.get_model_config(NAME)["max_batch_size"] == 10_000
    (first, *_) = client.get_model_repository_index()
    assert (first["name"], first["state"]) == (NAME, "READY")
    result = client.infer(NAME, inputs(), request_id="seven")
    assert result.get_response()["id"] == "seven"
    assert result.get_response()["model_version"] == "v2"
    for name, table in expected.items():
        np.testing.assert_allclose(result.as_numpy(name), table, rtol=1e-6, atol=1e-6)
    before = client.get_inference_statistics(NAME)["model_stats"][0]
    pending = [client.async_infer(NAME, inputs(3)) for _ in range(4)]
    for request in pending:
        assert request.get_result().as_numpy("q_values").shape == (3, 5)
    after = client.get_inference_statistics(NAME)["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 12
    assert after["inference_stats"]["success"]["count"] >= 4


def test_a_version_can_be_asked_for(client: triton.InferenceServerClient, released: Any) -> None:
    windows, carry = sample_windows(8, 3)
    old = answers(released, windows, carry, 0.0)["q_values"]
    result = client.infer(NAME, inputs(), model_version="v1")
    assert result.get_response()["model_version"] == "v1"
    np.testing.assert_allclose(result.as_numpy("q_values"), old, rtol=1e-6, atol=1e-5)
    with pytest.raises(InferenceServerException, match="unknown_version"):
        client.infer(NAME, inputs(), model_version="v77")


def test_json_tensors_and_chosen_outputs(client: triton.InferenceServerClient) -> None:
    binary = client.infer(NAME, inputs(8, binary=False, seed=4)).as_numpy("q_values")
    outputs = [
        triton.InferRequestedOutput("q_values", binary_data=False),
        triton.InferRequestedOutput("carry_after", binary_data=True),
    ]
    result = client.infer(NAME, inputs(8, binary=False, seed=4), outputs=outputs)
    np.testing.assert_allclose(result.as_numpy("q_values"), binary, rtol=1e-6)
    assert result.as_numpy("carry_after").shape == (8, 14)
    assert result.as_numpy("features") is None


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_bodies_are_taken(client: triton.InferenceServerClient, algorithm: str) -> None:
    result = client.infer(NAME, inputs(), request_compression_algorithm=algorithm)
    assert result.as_numpy("q_values").shape == (8, 5)


def test_unloading_closes_the_protocol_in_every_worker_and_no_decision(
    client: triton.InferenceServerClient, service: Any
) -> None:
    client.unload_model(NAME)
    try:
        for _ in range(8):
            assert not client.is_model_ready(NAME)
            with pytest.raises(InferenceServerException, match="unloaded"):
                client.infer(NAME, inputs(1))
        assert client.get_model_repository_index()[0]["state"] == "UNAVAILABLE"
        event = {"episode_id": "unloaded", "step": 0, "cpu_usage": 1}
        assert service.client.post("/v1/decisions", json=event).status_code == 200
    finally:
        client.load_model(NAME)
    assert client.is_model_ready(NAME)
    with pytest.raises(InferenceServerException, match="parameters"):
        client.load_model(NAME, config="{}")
    with pytest.raises(InferenceServerException, match="no model"):
        client.load_model("other")


def test_many_rows_equal_the_runtimes(client: triton.InferenceServerClient, released: Any) -> None:
    table = answers(released, *sample_windows(3000, 5))
    result = client.infer(NAME, inputs(3000, seed=5))
    for name, values in table.items():
        np.testing.assert_allclose(result.as_numpy(name), values, rtol=1e-5, atol=1e-5)


def tensor(name: str, data: Any, shape: list[int] | None = None, **changes: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape or [1, 14], "datatype": "FP64", "data": data, **changes}


ROW = [1.0] * 9 + [0.0] * 3 + [1.0, 0.0]
ZEROS = [0.0] * 14
SHARED, BINARY = {"shared_memory_region": "r"}, {"binary_data_size": 112}
GOOD = [tensor("windows", ROW), tensor("carry", ZEROS)]
ASKED: list[tuple[str, Any]] = [
    ("not JSON", b"{"),
    ("nothing", b""),
    ("no inputs", {}),
    ("an input missing", {"inputs": GOOD[:1]}),
    ("an input twice", {"inputs": [*GOOD, GOOD[0]]}),
    ("an unknown input", {"inputs": [*GOOD, tensor("more", ROW)]}),
    ("another type", {"inputs": [GOOD[0], tensor("carry", ZEROS, datatype="FP32")]}),
    ("another width", {"inputs": [GOOD[0], tensor("carry", ZEROS[:13], [1, 13])]}),
    ("too few values", {"inputs": [GOOD[0], tensor("carry", ZEROS[:13])]}),
    ("a negative size", {"inputs": [GOOD[0], tensor("carry", [], [-1, 14])]}),
    ("no rows", {"inputs": [tensor("windows", [], [0, 14]), tensor("carry", [], [0, 14])]}),
    ("text", {"inputs": [GOOD[0], tensor("carry", ["x"] * 14)]}),
    ("nothing measured of the past", {"inputs": [GOOD[0], tensor("carry", [None] * 14)]}),
    ("a negative count", {"inputs": [tensor("windows", [-1.0, *ROW[1:]]), GOOD[1]]}),
    ("above float32", {"inputs": [tensor("windows", [1e39, *ROW[1:]]), GOOD[1]]}),
    ("level 4", {"inputs": [tensor("windows", [*ROW[:13], 4]), GOOD[1]]}),
    ("an unknown output", {"inputs": GOOD, "outputs": [{"name": "more"}]}),
    ("a sequence", {"inputs": GOOD, "parameters": {"sequence_id": 7}}),
    ("shared memory", {"inputs": [tensor("windows", ROW, parameters=SHARED)]}),
    ("no binary data there", {"inputs": [tensor("windows", ROW, parameters=BINARY)]}),
]


@pytest.mark.parametrize("body", [body for _, body in ASKED], ids=[name for name, _ in ASKED])
def test_what_the_model_does_not_take_is_refused_with_the_protocols_error(
    service: Any, body: Any
) -> None:
    http: httpx.Client = service.client
    content = {"content": body} if isinstance(body, bytes) else {"json": body}
    answer = http.post(INFER, headers={"Content-Type": "application/json"}, **content)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]
    assert "outputs" not in answer.json()


def test_nested_lists_and_nulls_are_json_tensors(service: Any) -> None:
    unmeasured: list[Any] = [None] * 12 + [1.0, 0.0]
    two = [tensor("windows", [ROW, unmeasured], [2, 14]), tensor("carry", ZEROS * 2, [2, 14])]
    answer = service.client.post(INFER, json={"inputs": two})
    assert answer.status_code == 200, answer.text
    q_values = answer.json()["outputs"][0]
    assert (q_values["name"], q_values["shape"], len(q_values["data"])) == ("q_values", [2, 5], 10)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Inference-Header-Content-Length": "-1"}, 400),
        ({"Inference-Header-Content-Length": "1e3"}, 400),
        ({"Inference-Header-Content-Length": "9" * 30}, 400),
        ({"Inference-Header-Content-Length": "3"}, 400),
        ({"Content-Encoding": "gzip"}, 400),
        ({"Content-Encoding": "br"}, 415),
    ],
)
def test_headers_that_do_not_fit_the_body_are_refused(
    service: Any, headers: dict[str, str], status: int
) -> None:
    answer = service.client.post(INFER, json={"inputs": GOOD}, headers=headers)
    assert (answer.status_code, "error" in answer.json()) == (status, True), answer.text


def test_a_body_that_inflates_beyond_bounds_is_refused(service: Any) -> None:
    bomb = gzip.compress(b" " * (40 << 20))
    answer = service.client.post(INFER, content=bomb, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 413
    assert service.client.get("/v2/health/live").json() == {"live": True}


def test_too_many_rows_and_unknown_models_are_refused(service: Any) -> None:
    rows = 10_001
    many = [
        tensor("windows", ROW * rows, [rows, 14]),
        tensor("carry", ZEROS * rows, [rows, 14]),
    ]
    answer = service.client.post(INFER, json={"inputs": many})
    assert (answer.status_code, "10001" in answer.json()["error"]) == (413, True)
    other = service.client.post("/v2/models/other/infer", json={"inputs": GOOD})
    assert (other.status_code, "other" in other.json()["error"]) == (404, True)
