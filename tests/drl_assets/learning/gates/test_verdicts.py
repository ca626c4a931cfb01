"""Verdicts on their way from the checks to the release manifest."""

from pathlib import Path

from drl_assets.learning.gates import verdicts
from drl_assets.learning.gates.verdicts import Verdict


def test_verdicts_are_kept_by_gate_the_later_one_over_the_earlier(tmp_path: Path) -> None:
    assert verdicts.recorded(tmp_path / "none") == {}
    for gate, verdict in (
        ("a", Verdict(False, "no", "WARN", {"x": 1})),
        ("b", Verdict(True, "yes")),
        ("a", Verdict(True, "now")),
    ):
        verdicts.record(tmp_path / "kept", gate, verdict)
    assert verdicts.recorded(tmp_path / "kept") == {
        "a": {"passed": True, "severity": "ERROR", "reason": "now"},
        "b": {"passed": True, "severity": "ERROR", "reason": "yes"},
    }
