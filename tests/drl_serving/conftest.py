"""Real parts for the service's tests: exported graphs, signed releases, a running service."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from litestar import Litestar
from litestar.testing import TestClient

from drl_assets.learning.export.onnx_export import OPSET, export, golden
from drl_assets.learning.learners.networks import seeded_network
from drl_core.release.manifest import Golden, Manifest
from drl_core.release.signing_keys import signing_key
from drl_core.release.store import ModelStore
from drl_core.settings import Serving, Settings
from drl_serving.app import create_app

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="session")
def base() -> tuple[bytes, Golden]:
    """A real exported graph with its golden rows."""
    network = seeded_network([32, 32], 0)
    return export(network), golden(network)


class Publisher:
    """Releases variants of one graph; variant n's Q-values are the base's plus n."""

    def __init__(self, home: Path, base: tuple[bytes, Golden]) -> None:
        self.settings = Settings(home=str(home), serving=Serving(reload_interval_s=0.02))
        self.store = ModelStore(self.settings.models_path)
        self.graph, self.golden = base

    def model(self, offset: float = 0.0) -> bytes:
        """The graph with an offset on all Q-values, or one for each."""
        model = onnx.load_from_string(self.graph)
        last = next(node for node in model.graph.node if "q_values" in node.output)
        bias = np.full(5, offset, dtype=np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(bias, "offset"))
        last.output[0] = "before_offset"
        model.graph.node.append(
            onnx.helper.make_node("Add", ["before_offset", "offset"], ["q_values"])
        )
        return model.SerializeToString()

    def manifest(self, version: str, offset: float = 0.0, **changes: Any) -> Manifest:
        """A complete manifest of a variant."""
        q_values = (np.array(self.golden.q_values) + offset).tolist()
        manifest = Manifest(
            model_version=version,
            training_date="2026-11-22T12:00:00+00:00",
            training_episodes=10,
            final_average_reward=0.5,
            final_loss=0.1,
            learning_rate=1e-3,
            gamma=0.99,
            input_dim=30,
            output_dim=5,
            hidden_layers=[32, 32],
            sequence=1,
            sha256="0" * 64,
            blob="",
            size_bytes=0,
            features_version=1,
            opset=OPSET,
            preset="default",
            seed=0,
            gradient_steps=1,
            hyperparameters={},
            costs_version=1,
            checkpoint_sha256="0" * 64,
            parent_version=None,
            dagster_run_id=None,
            batch_partitions=[],
            git_commit=None,
            evaluation={},
            golden=msgspec.structs.replace(self.golden, q_values=q_values),
        )
        return msgspec.structs.replace(manifest, **changes)

    def publish(
        self,
        version: str,
        offset: float = 0.0,
        *,
        model: bytes | None = None,
        key: Ed25519PrivateKey | None = None,
        **changes: Any,
    ) -> Manifest:
        """Sign and release a variant."""
        return self.store.publish(
            self.model(offset) if model is None else model,
            self.manifest(version, offset, **changes),
            key or signing_key(self.settings.keys_path),
        )


@pytest.fixture(scope="session")
def new_publisher(base: tuple[bytes, Golden]) -> Callable[[Path], Publisher]:
    """A function that makes a model store in a home folder."""
    return lambda home: Publisher(home, base)


@pytest.fixture
def publisher(tmp_path: Path, new_publisher: Callable[[Path], Publisher]) -> Publisher:
    """A model store in a fresh home; nothing released yet."""
    return new_publisher(tmp_path)


@pytest.fixture
def client(publisher: Publisher) -> Iterator[TestClient[Litestar]]:
    """The application with one released model."""
    publisher.publish("v1")
    with TestClient(create_app(publisher.settings), raise_server_exceptions=False) as client:
        yield client


class Service:
    """A running `python -m drl_serving` and a client of it."""

    def __init__(self, process: "subprocess.Popen[bytes]", client: httpx.Client) -> None:
        self.process = process
        self.client = client

    def wait_until(self, holds: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait for something that the service does by itself."""
        until = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < until, "the service never got there"
            assert self.process.poll() is None, "the service has ended"
            time.sleep(0.02)

    def answers(self) -> bool:
        """Whether the process takes requests."""
        try:
            return self.client.get("/health/live").status_code == 200
        except httpx.TransportError:
            return False

    def version(self) -> str | None:
        """The version that is served."""
        found: str | None = self.client.get("/health/ready").json()["model_version"]
        return found


StartService = Callable[..., AbstractContextManager[Service]]


@pytest.fixture(scope="session")
def start_service() -> StartService:
    """A function that runs the service as a process of its own on a free port of loopback."""

    @contextlib.contextmanager
    def start(home: Path, wrapper: tuple[str, ...] = (), **environ: str) -> Iterator[Service]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        variables = {"DRL_HOME": str(home), "DRL_SERVING__PORT": str(port), **environ}
        kept = {k: v for k, v in os.environ.items() if not k.startswith("DRL_")}
        process = subprocess.Popen(
            [*wrapper, sys.executable, "-m", "drl_serving"],
            env=kept | variables,
            stdout=subprocess.DEVNULL,
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                service = Service(process, client)
                service.wait_until(service.answers)
                yield service
        finally:
            process.terminate()
            process.wait(30)

    return start
