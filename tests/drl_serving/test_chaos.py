"""kill -9 of each part while everything flows: nothing lost, nothing doubled, all comes back.

The short form of what docs/robustness.md tells how to run in full.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import chaos, outage
from benchmarks.deployment import KINDS

pytestmark = pytest.mark.integration


@pytest.mark.property(4)
@pytest.mark.property(43)
def test_kill_9_of_any_part_loses_and_doubles_nothing(
    tmp_path: Path, new_publisher: Callable[[Path], Any]
) -> None:
    homes = tmp_path / "home", tmp_path / "fresh"
    for home in homes:
        new_publisher(home).publish("v1")
    outcome = chaos.run(*homes, len(KINDS))
    assert outcome.recovery_s.keys() == set(KINDS)
    assert min(outcome.sent.values()) > 0
    for name in chaos.FAULTS:
        assert getattr(outcome, name) == [], name


@pytest.mark.property(43)
def test_while_postgresql_is_away_all_is_kept_and_it_drains_in_order(
    tmp_path: Path, new_publisher: Callable[[Path], Any]
) -> None:
    new_publisher(tmp_path).publish("v1")
    outcome = asyncio.run(outage.measure(tmp_path, outage_s=6, calm_s=1))
    assert outcome.deepest > 0
    assert outcome.lost == {"patterns": 0, "decisions": 0, "events": 0}
    assert (outcome.out_of_order, outcome.set_aside) == (0, 0)
    for phase in ("frozen", "gone"):
        assert outcome.statuses[f"decisions {phase}"]["200"] > 0, "decisions go on"
        assert set(outcome.statuses[f"searches {phase}"]) <= {"503", "200"}
