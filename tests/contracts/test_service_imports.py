"""The service stays small: what importing it loads, and what a running one with a model takes."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

FORBIDDEN = ("torch", "dagster", "polars", "pandas", "pandera")
NEEDLESS = ("faker", "grpc", "jwt")
MEMORY_LIMIT = 200_000_000
"""Of two workers and their supervisor, proportional: about 140 MB after the first OpenAPI page."""

RELEASE = """
import pathlib, sys
import msgspec
from drl_assets.learning.export.onnx_export import OPSET, export, golden
from drl_assets.learning.learners.networks import seeded_network
from drl_core.release.manifest import Manifest
from drl_core.release.signing_keys import signing_key
from drl_core.release.store import ModelStore
home = pathlib.Path(sys.argv[1])
network = seeded_network([256, 256], 0)
fields = {name: 0 for name in Manifest.__struct_fields__} | dict(
    model_version="v1", training_date="", final_average_reward=None, final_loss=None,
    input_dim=30, output_dim=5, hidden_layers=[256, 256], sequence=1, sha256="0" * 64, blob="",
    features_version=1, opset=OPSET, preset="default", hyperparameters={},
    checkpoint_sha256="0" * 64, parent_version=None, dagster_run_id=None, batch_partitions=[],
    git_commit=None, evaluation={}, golden=golden(network), rollback_of=None, staged=False,
)
manifest = msgspec.convert(msgspec.to_builtins(fields), Manifest)
ModelStore(home / "models").publish(export(network), manifest, signing_key(home / "keys"))
"""

LOADED = """
import sys
from drl_core.settings import load
from drl_serving.server.worker import create_app
create_app(load())
names = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
print(",".join(sorted(names & set(sys.argv[1].split(",")))))
"""


@pytest.mark.parametrize("names", [FORBIDDEN, NEEDLESS], ids=["training", "needless"])
def test_a_worker_loads_no_library_that_it_does_not_use(names: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOADED, ",".join(names)]
    environ = os.environ | {"DRL_HOME": str(tmp_path)}
    ended = subprocess.run(command, env=environ, check=True, capture_output=True, text=True)
    assert ended.stdout.strip() == ""


def proportional(process: psutil.Process) -> int:
    """Memory that is a process's own, and its part of what it shares (PSS), bytes."""
    return int(process.memory_full_info().pss)


@pytest.mark.integration
def test_two_workers_with_a_model_stay_below_their_memory(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", RELEASE, str(tmp_path)], check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = {
        "DRL_HOME": str(tmp_path),
        "DRL_SERVING__PORT": str(port),
        "DRL_SERVING__WORKERS": "2",
    }
    process = subprocess.Popen([sys.executable, "-m", "drl_serving"], env=os.environ | environ)
    base = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 60
        while not answers(f"{base}/health/ready"):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        for episode in range(50):
            events = [{"episode_id": episode, "step": n, "cpu_usage": n} for n in range(100)]
            assert httpx.post(f"{base}/v1/decisions", json=events).status_code == 200
        for _ in range(4):
            assert httpx.get(f"{base}/schema/openapi.json").status_code == 200
        children = psutil.Process(process.pid).children()
        workers = [child for child in children if "recovery" not in " ".join(child.cmdline())]
        assert len(workers) == 2
        used = [proportional(one) for one in (psutil.Process(process.pid), *workers)]
        print(f"proportional set size: {', '.join(f'{size / 1e6:.0f} MB' for size in used)}")
        assert sum(used) < MEMORY_LIMIT
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False
