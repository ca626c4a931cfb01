"""Releases under load, a fifth hostile: no failed request, every refusal by name."""

from pathlib import Path

import pytest

from benchmarks import releases


@pytest.mark.property(39)
@pytest.mark.property(35)
@pytest.mark.integration
def test_a_storm_of_releases_fails_no_request_and_refuses_each_hostile_one_by_name(
    tmp_path: Path,
) -> None:
    outcome = releases.run(releases=40, warm_up=2, home=tmp_path)
    assert outcome.misnamed == []
    assert outcome.refused == dict.fromkeys(releases.HOSTILE, 1)
    assert len(outcome.publish_ms) == 32
    for load in outcome.loads:
        assert load.failed == []
        assert load.mismatched == []
        assert load.requests > 0
        assert load.versions > 1
