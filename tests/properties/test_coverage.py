"""Every correctness property that is due has a test, and no test claims a number that is none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.properties import table

ROOT = Path(__file__).resolve().parents[2]
DUE = {*range(1, 20), *range(21, 40), 43, 44}

# another process: pytest collects once in each
COLLECT = """
import json
from tests.properties import table
tests = table.collect(run=False).tests
print("\\n" + json.dumps({str(n): len(t) for n, t in tests.items()}))
"""


@pytest.fixture(scope="module")
def counted() -> dict[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", COLLECT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    return {int(number): count for number, count in counts.items()}


def test_every_number_that_is_due_has_a_test(counted: dict[int, int]) -> None:
    assert sorted(DUE - counted.keys()) == []


def test_every_other_number_says_why_it_is_open(counted: dict[int, int]) -> None:
    assert table.SENTENCES.keys() == set(range(1, 45))
    assert set(range(1, 45)) - DUE == table.OPEN.keys()
    assert counted.keys() <= table.SENTENCES.keys(), "a test claims a number that does not exist"


def test_the_result_of_a_property_is_the_worst_of_its_tests() -> None:
    outcomes = {"a": "passed", "b": "skipped", "c": "failed"}
    assert table.result_of(["a", "b"], outcomes) == "passed"
    assert table.result_of(["b"], outcomes) == "skipped"
    assert table.result_of(["a", "b", "c"], outcomes) == "failed"
    assert table.result_of(["a", "new"], outcomes) == "not run"
