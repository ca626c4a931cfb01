"""Triton's own gRPC client against the real service: the twins of the HTTP calls."""

import queue
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from drl_assets.learning.export.onnx_export import sample_windows, session
from drl_serving.open_inference.service import NAME

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def released(new_publisher: Any, tmp_path_factory: Any) -> Any:
    """A store with one release."""
    publisher = new_publisher(tmp_path_factory.mktemp("open_inference_grpc"))
    publisher.publish("v1")
    return publisher


@pytest.fixture(scope="module")
def address(released: Any, start_service: Any) -> Iterator[str]:
    """Where a running service speaks gRPC."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with start_service(released.settings.home_path, DRL_SERVING__GRPC_PORT=port) as service:
        both = 'version="v1"} 2.0'  # of both workers: each holds what it has taken itself
        service.wait_until(lambda: both in service.client.get("/metrics").text)
        released.publish("v2", 2.0)
        service.wait_until(lambda: "drl_model_sequence 2.0" in service.client.get("/metrics").text)
        yield f"127.0.0.1:{port}"


@pytest.fixture
def client(address: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address) as client:
        yield client


def inputs(rows: int = 8, seed: int = 3) -> list[triton.InferInput]:
    made = []
    for name, table in zip(("windows", "carry"), sample_windows(rows, seed), strict=True):
        made.append(triton.InferInput(name, list(table.shape), "FP64"))
        made[-1].set_data_from_numpy(table)
    return made


def status(error: pytest.ExceptionInfo[InferenceServerException]) -> str:
    return str(error.value.status()).removeprefix("StatusCode.")


def test_every_ordinary_call_of_tritons_client_passes(
    client: triton.InferenceServerClient, released: Any
) -> None:
    windows, carry = sample_windows(8, 3)
    names = ["q_values", "features", "carry_after"]
    table = session(released.model(2.0)).run(names, {"windows": windows, "carry": carry})
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(NAME)
    assert client.get_server_metadata().name == "drl-sandbox-policy"
    metadata = client.get_model_metadata(NAME)
    assert list(metadata.versions)[:1] == ["v2"]
    assert [(i.name, i.datatype, list(i.shape)) for i in metadata.inputs] == [
        ("windows", "FP64", [-1, 14]),
        ("carry", "FP64", [-1, 14]),
    ]
    config = client.get_model_config(NAME).config
    assert (config.max_batch_size, list(config.input[0].dims)) == (10_000, [14])
    assert client.get_model_repository_index().models[0].state == "READY"
    before = client.get_inference_statistics(NAME).model_stats[0].inference_count
    result = client.infer(NAME, inputs(), request_id="seven")
    assert (result.get_response().id, result.get_response().model_version) == ("seven", "v2")
    for name, values in zip(names, table, strict=True):
        np.testing.assert_allclose(result.as_numpy(name), values, rtol=1e-6, atol=1e-6)
    answers: queue.Queue[Any] = queue.Queue()
    client.async_infer(NAME, inputs(3), lambda result, error: answers.put((result, error)))
    late, error = answers.get(timeout=60)
    assert error is None
    assert late.as_numpy("q_values").shape == (3, 5)
    after = client.get_inference_statistics(NAME).model_stats[0].inference_count
    assert after - before == 11


def test_versions_outputs_and_compression(client: triton.InferenceServerClient) -> None:
    outputs = [triton.InferRequestedOutput("q_values")]
    old = client.infer(NAME, inputs(), model_version="v1", outputs=outputs)
    new = client.infer(NAME, inputs(), outputs=outputs, compression_algorithm="gzip")
    difference = new.as_numpy("q_values") - old.as_numpy("q_values")
    np.testing.assert_allclose(difference, 2.0, atol=1e-4)
    assert new.as_numpy("features") is None


def test_a_stream_goes_on_after_a_refused_request(client: triton.InferenceServerClient) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer(NAME, inputs(200))
    client.async_stream_infer("other", inputs(1))
    client.async_stream_infer(NAME, inputs(2))
    found = [answers.get(timeout=60) for _ in range(3)]
    client.stop_stream()
    assert [error is None for _, error in found] == [True, False, True]
    assert found[0][0].as_numpy("q_values").shape == (200, 5)


def test_loading_and_unloading(client: triton.InferenceServerClient) -> None:
    client.unload_model(NAME)
    try:
        for _ in range(4):
            assert not client.is_model_ready(NAME)
            with pytest.raises(InferenceServerException) as error:
                client.infer(NAME, inputs(1))
            assert status(error) == "UNAVAILABLE"
    finally:
        client.load_model(NAME)
    assert client.infer(NAME, inputs(1)).as_numpy("q_values").shape == (1, 5)
    with pytest.raises(InferenceServerException) as error:
        client.load_model(NAME, config="{}")
    assert status(error) == "INVALID_ARGUMENT"


def test_what_the_model_does_not_take_has_a_status_code(
    client: triton.InferenceServerClient,
) -> None:
    narrow = triton.InferInput("carry", [1, 13], "FP64")
    narrow.set_data_from_numpy(np.zeros((1, 13)))
    unmeasured = triton.InferInput("carry", [1, 14], "FP64")
    unmeasured.set_data_from_numpy(np.full((1, 14), np.nan))
    one = inputs(1)
    cases = [
        ([one[0]], NAME, "", "INVALID_ARGUMENT"),
        ([one[0], narrow], NAME, "", "INVALID_ARGUMENT"),
        ([one[0], unmeasured], NAME, "", "INVALID_ARGUMENT"),
        (one, "other", "", "NOT_FOUND"),
        (one, NAME, "v77", "NOT_FOUND"),
        (inputs(10_001), NAME, "", "RESOURCE_EXHAUSTED"),
    ]
    for given, model, version, code in cases:
        with pytest.raises(InferenceServerException) as error:
            client.infer(model, given, model_version=version)
        assert status(error) == code, (model, version)
    with pytest.raises(InferenceServerException) as error:
        client.infer(NAME, one, sequence_id=7)
    assert status(error) == "INVALID_ARGUMENT"


def test_typed_contents_deadlines_and_the_standard_health_service(address: str) -> None:
    request = service_pb2.ModelInferRequest(model_name=NAME)
    row = [1.0] * 9 + [0.0] * 3 + [1.0, 0.0]
    for name, values in (("windows", row), ("carry", [0.0] * 14)):
        tensor = request.inputs.add(name=name, datatype="FP64", shape=[1, 14])
        tensor.contents.fp64_contents.extend(values)
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert len(stub.ModelInfer(request, timeout=60).raw_output_contents[0]) == 5 * 4
        with pytest.raises(grpc.RpcError) as late:
            stub.ModelInfer(request, timeout=-1.0)  # the deadline has passed
        assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        with pytest.raises(grpc.RpcError) as unknown:
            stub.SystemSharedMemoryStatus(service_pb2.SystemSharedMemoryStatusRequest())
        assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.property(44)
def test_calls_without_the_right_credential_are_refused(
    released: Any, start_service: Any, tmp_path: Path
) -> None:
    from drl_serving.access.api_keys import KeyFile

    home = tmp_path / "home"
    (home / "keys").mkdir(parents=True)
    secret = KeyFile(home / "keys").create("reader", ["decide"])[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        start_service(home, DRL_SERVING__GRPC_PORT=str(port), DRL_SERVING__WORKERS="1"),
        triton.InferenceServerClient(f"127.0.0.1:{port}") as client,
    ):
        assert client.is_server_live()
        with pytest.raises(InferenceServerException) as error:
            client.infer(NAME, inputs(1))
        assert status(error) == "UNAUTHENTICATED"
        headers = {"authorization": f"Bearer {secret}"}
        with pytest.raises(InferenceServerException) as error:
            client.infer(NAME, inputs(1), headers=headers)
        assert status(error) == "UNAVAILABLE", "let in; there is no model"
        with pytest.raises(InferenceServerException) as error:
            client.unload_model(NAME, headers=headers)
        assert status(error) == "PERMISSION_DENIED"


def test_the_committed_code_is_what_the_protos_make(tmp_path: Path) -> None:
    for proto, plugins in (
        ("drl_core/protos/graph", ["python", "pyi"]),
        ("drl_core/protos/telemetry", ["python", "pyi"]),
        ("drl_serving/open_inference/grpc/protos/open_inference", ["python", "pyi", "grpc_python"]),
    ):
        outs = [f"--{plugin}_out={tmp_path}" for plugin in plugins]
        command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outs, f"{proto}.proto"]
        subprocess.run(command, cwd=REPOSITORY, check=True)
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(made) == 7
    for path in made:
        committed = REPOSITORY / path.relative_to(tmp_path)
        assert path.read_bytes() == committed.read_bytes(), f"{committed}: run `make protos`"
