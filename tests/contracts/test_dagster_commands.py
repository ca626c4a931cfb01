"""Dagster's own commands in a plain checkout: no `drl up`, no variable, all state below `.drl`."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from drl_core.telemetry.landing import LandingZone

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("drl_core", "drl_assets", "drl_serving", "drl_cli", "config")
FILES = ("pyproject.toml", "dagster.yaml", "workspace.yaml")
LOCATION = "drl_assets.definitions"


class Checkout:
    """A copy of the repository, and commands that run in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in PACKAGES:
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / name, root / name, ignore=ignore)
        for name in FILES:
            shutil.copy(REPOSITORY / name, root)
        self.files = self.names()

    @property
    def landing(self) -> LandingZone:
        return LandingZone(self.root / ".drl" / "landing")

    def names(self) -> set[str]:
        return {path.name for path in self.root.iterdir()} - {"__pycache__"}

    def run(self, *command: str, **variables: str) -> str:
        """Run a command of the environment; gives its whole output, its exit status being 0."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("DRL_", "DAGSTER_"))}
        done = subprocess.run(
            [Path(sys.executable).with_name(command[0]), *command[1:]],
            cwd=self.root,
            env={**clean, "PYTHONPATH": str(self.root), "COLUMNS": "200", **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    made = Checkout(tmp_path_factory.mktemp("checkout"))
    yield made
    keepers = [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(made.root) in " ".join(process.info["cmdline"] or [])
    ]
    _, alive = psutil.wait_procs(keepers, timeout=60)
    assert alive == [], "the embedded PostgreSQL ends after its last user"


@pytest.mark.integration
def test_the_definitions_are_validated_and_listed(checkout: Checkout) -> None:
    assert f"successful for code location {LOCATION}" in checkout.run(
        "dagster", "definitions", "validate"
    )
    assert "All definitions loaded successfully" in checkout.run("dg", "check", "defs")
    listed = checkout.run("dg", "list", "defs")
    for name in ("telemetry_batches", "landed_telemetry", "seal_landed_telemetry", "project"):
        assert name in listed
    assert checkout.names() == checkout.files | {".drl"}


@pytest.mark.integration
def test_a_batch_is_previewed_sealed_and_materialised_by_its_key(checkout: Checkout) -> None:
    checkout.run("drl", "generate", ".drl/events.jsonl", "--episodes", "6", "--steps", "4")
    checkout.run("drl", "import", ".drl/events.jsonl")
    pending = checkout.landing.pending()
    assert pending is not None

    preview = ("dagster", "sensor", "preview", "landed_telemetry", "-m", LOCATION)
    assert "1 run(s)" in checkout.run(*preview, DAGSTER_HOME=str(checkout.root))
    assert checkout.landing.keys() == []
    assert checkout.landing.pending() == pending

    said = checkout.run("dg", "launch", "--job", "seal_landed_telemetry")
    assert f"--partition {pending.key}" in said
    assert checkout.landing.keys() == [pending.key]

    assets = "telemetry_batches,normalized_states,experiences"
    target = ("--select", assets, "--partition", pending.key, "-m", LOCATION)
    assert "RUN_SUCCESS" in checkout.run("dagster", "asset", "materialize", *target)
    assert (checkout.root / f".drl/tables/experiences/{pending.key}.parquet").exists()
    assert checkout.names() == checkout.files | {".drl"}
