"""The code location: quick to load, light to import, and its specs as a reviewed snapshot.

UPDATE_SNAPSHOTS=1 pytest tests/contracts/test_code_location.py   # takes the specs as they are
"""

import ast
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from typer.testing import CliRunner

from drl_assets.definitions import defs
from drl_cli.main import app

REPOSITORY = Path(__file__).resolve().parents[2]
SNAPSHOT = Path(__file__).with_name("asset_specs.json")
PACKAGES = ("drl_core", "drl_assets", "drl_serving", "drl_cli")
HEAVY = {"torch", "onnx", "onnxruntime", "matplotlib", "sklearn", "pandera", "gymnasium"}
LOAD_LIMIT_S = 3.0
LINE_LIMIT = 400


def sources(*folders: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--", *(f"{folder}/*.py" for folder in folders)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    found = [REPOSITORY / line for line in listed.stdout.splitlines()]
    if not found:  # not a checkout
        found = [path for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]
    return [path for path in found if path.exists()]


def loaded_in_a_process_of_its_own() -> float:
    """Processor seconds of an interpreter that imports the code location, start-up included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-c", "import drl_assets.definitions"], cwd=REPOSITORY, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_code_location_loads_in_three_seconds_of_processor_time() -> None:
    best = min(loaded_in_a_process_of_its_own() for _ in range(3))
    print(f"code location: {best:.2f} s")
    assert best < LOAD_LIMIT_S


def test_the_code_location_loads_no_library_of_learning_or_drawing() -> None:
    program = "import sys, drl_assets.definitions; print(*{n.split('.')[0] for n in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert HEAVY & set(done.stdout.split()) == set()


def test_imports_keep_their_directions() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def specs() -> dict[str, Any]:
    """Everything that the code location offers, as plain data."""
    graph = defs.resolve_asset_graph()
    repository = defs.get_repository_def()
    return {
        "assets": {
            key.to_user_string(): {
                "group": (node := graph.get(key)).group_name,
                "after": sorted(parent.to_user_string() for parent in node.parent_keys),
                "kinds": sorted(node.kinds),
                "owners": list(node.owners),
                "code_version": node.code_version,
                "partitions": node.partitions_def.name
                if isinstance(node.partitions_def, dg.DynamicPartitionsDefinition)
                else None,
                "description": node.description,
            }
            for key in graph.toposorted_asset_keys
        },
        "checks": {
            f"{key.asset_key.to_user_string()}: {key.name}": {
                "blocking": (spec := graph.get_check_spec(key)).blocking,
                "description": spec.description,
            }
            for key in sorted(graph.asset_check_keys)
        },
        "jobs": {
            job.name: {"steps": sorted(node.name for node in job.nodes), "tags": dict(job.tags)}
            for job in repository.get_all_jobs()
            if not job.name.startswith("__")
        },
        "sensors": {
            one.name: {
                "job": one.job_name if one.has_jobs else None,
                "every_s": one.minimum_interval_seconds,
                "starts": one.default_status.value,
            }
            for one in repository.sensor_defs
        },
        "schedules": {
            one.name: {
                "job": one.job_name,
                "cron": one.cron_schedule,
                "starts": one.default_status.value,
            }
            for one in repository.schedule_defs
        },
    }


def test_the_specs_are_those_of_the_snapshot() -> None:
    found = json.loads(json.dumps(specs()))
    if os.environ.get("UPDATE_SNAPSHOTS") == "1":
        SNAPSHOT.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    assert found == json.loads(SNAPSHOT.read_text()), "see the top of this file"


def test_modules_that_dagster_inspects_evaluate_their_annotations() -> None:
    postponed = [
        str(path.relative_to(REPOSITORY))
        for path in sources("drl_assets/defs")
        if "from __future__ import annotations" in path.read_text()
    ]
    assert postponed == []


def test_no_file_is_longer_than_a_room() -> None:
    long = {
        str(path.relative_to(REPOSITORY)): lines
        for path in sources(*PACKAGES, "tests", "benchmarks", "samples")
        if (lines := len(path.read_text().splitlines())) > LINE_LIMIT
        and not path.stem.endswith(("_pb2", "_pb2_grpc"))  # generated
    }
    assert long == {}


def private_imports(path: Path, library: str) -> list[str]:
    """Imports of modules or names of a library that begin with an underscore."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [
        name
        for name in names
        if name.split(".")[0] == library and any(part[0] == "_" for part in name.split("."))
    ]


WRITES_AS_DAGSTER_DOES = "test_console_health.py"
"""The console reads Dagster's tables, which have no public writer: a changed table must fail it."""


def test_nothing_private_of_dagster_is_imported() -> None:
    found = {
        str(path.relative_to(REPOSITORY)): names
        for path in sources(*PACKAGES, "tests", "benchmarks")
        if (names := private_imports(path, "dagster")) and path.name != WRITES_AS_DAGSTER_DOES
    }
    assert found == {}


def readme_commands() -> list[str]:
    """Every `drl WORD` of the README that begins a line, a piece of code or a program's name."""
    text = (REPOSITORY / "README.md").read_text()
    return sorted(set(re.findall(r"(?:^ *|`|/)drl ([a-z]+)", text, re.MULTILINE)))


def test_the_readme_names_the_main_commands() -> None:
    assert {"up", "import", "train", "evaluate"} <= set(readme_commands())


@pytest.mark.parametrize("command", readme_commands())
def test_a_command_of_the_readme_is_listed_and_explains_itself(command: str) -> None:
    listed = CliRunner().invoke(app, ["--help"], env={"TERMINAL_WIDTH": "120"})
    assert listed.exit_code == 0
    assert f" {command} " in listed.stdout
    explained = CliRunner().invoke(app, [command, "--help"])
    assert explained.exit_code == 0
    assert "Usage" in explained.stdout
