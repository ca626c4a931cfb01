"""The service stays small: what importing it loads, and what a running one with a model takes."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

FORBIDDEN = ("torch", "dagster", "polars", "pandas", "pandera")
MEMORY_LIMIT = 150_000_000

RELEASE = """
import pathlib, sys
import msgspec
from drl_assets.learning.export import OPSET, export, golden
from drl_assets.learning.network import seeded_network
from drl_core.bundle import Manifest, ModelStore, signing_key
home = pathlib.Path(sys.argv[1])
network = seeded_network([256, 256], 0)
fields = {name: 0 for name in Manifest.__struct_fields__} | dict(
    model_version="v1", training_date="", final_average_reward=None, final_loss=None,
    input_dim=30, output_dim=5, hidden_layers=[256, 256], sequence=1, sha256="0" * 64, blob="",
    features_version=1, opset=OPSET, preset="default", hyperparameters={},
    checkpoint_sha256="0" * 64, parent_version=None, dagster_run_id=None, batch_partitions=[],
    git_commit=None, evaluation={}, golden=golden(network), rollback_of=None,
)
manifest = msgspec.convert(msgspec.to_builtins(fields), Manifest)
ModelStore(home / "models").publish(export(network), manifest, signing_key(home / "keys"))
"""

SERVE = """
import asyncio, sys
import drl_serving.app, drl_serving.__main__
loaded = sorted(set(sys.argv[2].split(",")) & {name.partition(".")[0] for name in sys.modules})
print(",".join(loaded), flush=True)
import socket
import drl_core.settings
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
print(port, flush=True)
settings = drl_core.settings.Settings(
    home=sys.argv[1], serving=drl_core.settings.Serving(port=port)
)
drl_serving.__main__.run(settings)
"""


@pytest.mark.integration
def test_the_service_loads_no_training_library_and_stays_below_150_mb(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", RELEASE, str(tmp_path)], check=True, capture_output=True)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(tmp_path), ",".join(FORBIDDEN)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == ""
        port = int(process.stdout.readline())
        while "Uvicorn running" not in process.stdout.readline():
            assert process.poll() is None
        import httpx

        base = f"http://127.0.0.1:{port}"
        for episode in range(50):
            events = [{"episode_id": episode, "step": n, "cpu_usage": n} for n in range(100)]
            answer = httpx.post(f"{base}/v1/decisions", json=events)
            assert answer.status_code == 200
        assert httpx.get(f"{base}/v1/patterns").status_code == 503
        assert httpx.get(f"{base}/schema/openapi.json").status_code == 200
        resident = psutil.Process(process.pid).memory_info().rss
        print(f"resident: {resident / 1e6:.0f} MB")
        assert resident < MEMORY_LIMIT
    finally:
        process.terminate()
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()
