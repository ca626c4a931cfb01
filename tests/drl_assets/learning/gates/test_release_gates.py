"""The table of release gates: complete, light to import, each judging what it needs alone."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from drl_assets.learning.gates.release_gates import GATES, ReleaseGate
from drl_assets.learning.gates.verdicts import Verdict
from drl_assets.learning.learners.checkpoint import Checkpoint
from drl_assets.learning.learners.networks import PosteriorQNetwork, seeded_network
from drl_core.settings import Gates
from tests.drl_assets.learning.gates.test_evaluation_gates import table
from tests.drl_assets.learning.small import saved

REPORT = saved(seeded_network([8], 0), {})
NEW = pl.DataFrame(
    {"state": [[0.5] * 30], "is_malicious": [True]},
    schema={"state": pl.Array(pl.Float32, 30), "is_malicious": pl.Boolean},
)


@dataclasses.dataclass(frozen=True)
class Shown:
    """Evidence made by hand; what is not given must not be read."""

    bounds: Gates = dataclasses.field(default_factory=Gates)
    cache: Path = Path("unused")
    given: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return self.given[name]


def judge(name: str, **given: Any) -> Verdict:
    return gate(name).judge(Shown(given=given))


def gate(name: str) -> ReleaseGate:
    (found,) = (one for one in GATES if one.name == name)
    return found


def test_every_gate_has_a_name_of_its_own_and_says_what_it_holds() -> None:
    assert len({one.name for one in GATES}) == len(GATES)
    assert all(one.description.strip() for one in GATES)
    assert {one.asset for one in GATES} == {
        "trained_checkpoint",
        "policy_evaluation",
        "onnx_model",
    }


def test_the_table_is_imported_without_libraries_of_learning() -> None:
    program = (
        "import sys; from drl_assets.learning.gates.release_gates import GATES;"
        "print(len(GATES), {'torch', 'polars', 'onnx', 'scipy', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split(maxsplit=1) == [str(len(GATES)), "set()\n"]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("oracle_regret", {"checkpoint": REPORT}),
        ("labels_consistent", {"champion": REPORT, "new_rows": NEW}),
    ],
)
def test_a_gate_that_cannot_judge_an_algorithm_warns(name: str, given: dict[str, Any]) -> None:
    verdict = judge(name, **given)
    assert (verdict.passed, verdict.severity) == (False, "WARN")
    assert verdict.reason == "not applicable to the report's DQN"


def test_without_a_champion_or_new_rows_there_is_nothing_to_contradict_or_to_differ_from() -> None:
    assert judge("labels_consistent", champion=None, new_rows=None).passed
    assert judge("labels_consistent", champion=REPORT, new_rows=None).passed
    assert judge("labels_consistent", champion=REPORT, new_rows=NEW.clear()).passed
    assert judge("drift_within_bounds", champion=None, new_rows=NEW).passed


def numbers(weight: float = 1.0, loss: float = 1.0, norm: float = 1.0) -> Checkpoint:
    network = PosteriorQNetwork([4], 2)
    network.weights[0].data.fill_(weight)
    found = saved(network, {})
    about = {**found.hyperparameters, "clip": 10.0}
    return dataclasses.replace(
        found, hyperparameters=about, losses=[0.5, loss], max_gradient_norm=norm
    )


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ({}, None),
        ({"norm": 10.00005}, None),
        ({"weight": np.nan}, "weights"),
        ({"loss": np.inf}, "losses"),
        ({"norm": 10.1}, "gradient"),
    ],
)
def test_a_number_that_is_not_finite_or_too_great_refuses(
    broken: dict[str, float], named: str | None
) -> None:
    verdict = judge("finite_and_bounded", checkpoint=numbers(**broken))
    assert verdict.passed == (named is None)
    assert verdict.severity == "ERROR"
    assert (named or "all finite and bounded") in verdict.reason


@pytest.mark.parametrize("flips", [0, 1])
@pytest.mark.parametrize("q_error", [1e-6, 1e-4])
def test_a_graph_of_other_answers_refuses(flips: int, q_error: float) -> None:
    parity = {"states": 65_536, "q_error": q_error, "feature_error": 0.0, "argmax_flips": flips}
    verdict = judge("onnx_parity", parity=parity)
    assert verdict.passed == (flips == 0 and q_error < 1e-5)
    assert verdict.figures == parity


def test_the_gates_of_the_evaluation_read_its_table() -> None:
    given = {"evaluation": table(), "checkpoint": REPORT}
    for one in GATES:
        if one.asset == "policy_evaluation":
            assert isinstance(one.judge(Shown(given=given)), Verdict)
