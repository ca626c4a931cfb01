"""Champion/challenger gates on the evaluation: pure functions from figures to a verdict.

The table of `evaluate.evaluate_policies`, the challenger's tuned baselines and the bounds of the
configuration come in; a `Verdict` comes out. With a champion an ERROR refuses the challenger and
the champion goes on serving. Before the first release, what was not shown is a WARN, since a new
deployment only observes (docs/decisions/0016).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from drl_assets.learning.gates.verdicts import Severity, Verdict
from drl_core.settings import Gates

Result = Mapping[str, Any]
"""What `evaluate.evaluate_policies` returns."""
Interval = list[float] | None
"""A 95 % confidence interval, see `bootstrap`."""


def not_worse_than_doing_nothing_or_everything(result: Result) -> Verdict:
    """Worse than never acting or always terminating, beyond doubt, is refused at any time."""
    found = {other: result["advantage"][other] for other in ("never_act", "always_terminate")}
    figures = {f"advantage_over_{other}": interval for other, interval in found.items()}
    if any(interval is None for interval in found.values()):
        reason = f"{_seen(result)}; released for observation without evidence"
        return Verdict(False, reason, "WARN")
    worse = [other for other, interval in found.items() if _worse(interval)]
    reason = f"worse than {', '.join(worse)}" if worse else "not worse than either"
    return Verdict(not worse, reason, figures=figures)


def not_worse_than_champion(result: Result, bounds: Gates) -> Verdict:
    """Non-inferiority: the lower bound of the paired difference in utility is above -delta.

    Overall, and within each attack type (benign is one) of at least `type_sessions` held-out
    sessions. Types with fewer are reported, not judged: an interval from so few says little.
    """
    overall = _against_champion(result, "utility")
    if overall is None:
        return Verdict(True, "does not apply: there is no champion yet")
    types = {
        kind: {**group["against_champion"]["utility"], "sessions": group["sessions"]}
        for kind, group in result["per_attack_type"].items()
    }
    judged = [kind for kind, one in types.items() if one["sessions"] >= bounds.type_sessions]
    figures = {"overall": overall, "types": types, "judged_types": judged}
    if overall["interval"] is None:
        return Verdict(False, f"{_seen(result)}; the champion stays", figures=figures)
    short = [_shortfall("overall", overall, bounds.delta)]
    short += [_shortfall(kind, types[kind], bounds.delta_per_type) for kind in judged]
    reasons = [text for text in short if text]
    gain = f"utility per episode {_with(overall)} beside the champion's"
    return Verdict(not reasons, "; ".join(reasons) or gain, figures=figures)


def _shortfall(of: str, found: Mapping[str, Any], delta: float) -> str | None:
    """What is wrong with a paired difference, None where it is shown to be no worse than delta."""
    low = found["interval"][0] if found["interval"] else -math.inf
    if low > -delta:
        return None
    how = "worse" if _worse(found["interval"], delta) else "not shown to be no worse"
    return (
        f"{of}: {how}, utility per episode {_with(found)} beside the champion's, -{delta} allowed"
    )


def not_worse_than_supervised(
    result: Result, baselines: Mapping[str, Any], bounds: Gates
) -> Verdict:
    """Not worse by delta, beyond doubt, than the best supervised baseline.

    The best is that of the highest utility when it was tuned, on sessions that were left out (the
    one-feature rule has too little freedom to need it); never that of these episodes, since the
    best of several by luck would be picked.
    """
    tuned = {
        other: one["utility"]
        for other, one in baselines.items()
        if "utility" in one and (one["folds"] or other == "threshold_rule")
    }
    if not tuned:
        return Verdict(False, "no supervised baseline: one class only", "WARN")
    best = max(tuned, key=tuned.__getitem__)
    interval: Interval = result["advantage"][best]
    found = {"mean": result["advantage_mean"][best], "interval": interval}
    figures = {"best": best, "tuning_utility": tuned, "advantage": found}
    if interval is None:
        return Verdict(False, f"{_seen(result)} with {best}", "WARN", figures)
    reason = f"utility per episode {_with(found)} beside {best}"
    if _worse(interval, bounds.delta):
        return Verdict(False, f"worse: {reason}", _severity(result), figures)
    return Verdict(True, reason, _severity(result), figures)


def interruption_within_budget(result: Result, bounds: Gates) -> Verdict:
    """The upper bound of benign interruption is within the budget, or not above the champion's.

    Where not one benign episode was interrupted, and there are too few to bound it any better, it
    is a warning that says how many would do.
    """
    share, interval = _ours(result, "benign_interruption")
    benign, budget = result["episodes"] - result["malicious"], bounds.interruption_budget
    figures = {"benign_episodes": benign, "benign_interruption": share, "interval": interval}
    upper = interval[1] if interval else 1.0
    beyond = f"{share or 0:.2%} of {benign} benign episodes interrupted, up to {upper:.2%}"
    if interval and upper <= budget:
        return Verdict(True, f"at most {upper:.2%} of benign episodes", figures=figures)
    refused = f"{beyond}: beyond {budget:.2%}"
    verdict = _unless_champion(
        result, "benign_interruption", refused, f"{refused}, but no more than by the champion"
    )
    if share or verdict.passed:
        return _with_figures(verdict, figures)
    needed = _benign_needed(budget)
    reason = f"{beyond}: too few to show {budget:.2%}, which takes {needed}"
    return Verdict(False, reason, "WARN", {**figures, "benign_needed": needed})


def _benign_needed(budget: float) -> int | None:
    """Benign episodes of which none is interrupted that bound the share by a budget."""
    return math.ceil(math.log(0.025) / math.log1p(-budget)) if 0 < budget < 1 else None


def review_within_cap(result: Result, bounds: Gates) -> Verdict:
    """The lower bound of the review load is within its cap, or it is not above the champion's."""
    load, interval = _ours(result, "review_load")
    figures = {"review_load": load, "interval": interval}
    if load is None:
        return Verdict(False, _seen(result), _severity(result), figures)
    reason = f"{load:.1%} of all episodes are sent to review"
    if (interval[0] if interval else load) <= bounds.review_cap:
        return Verdict(True, reason, figures=figures)
    refused = f"{reason}, beyond {bounds.review_cap:.0%}"
    verdict = _unless_champion(
        result, "review_load", refused, f"{reason}, no more than by the champion"
    )
    return _with_figures(verdict, figures)


def _ours(result: Result, figure: str) -> tuple[float | None, Interval]:
    """A figure of the challenger with its interval."""
    return result["policies"]["drl"][figure], result["intervals"]["drl"][figure]


def _worse(interval: Interval, delta: float = 0.0) -> bool:
    """Whether a paired difference is below -delta beyond doubt."""
    return interval is not None and interval[1] < -delta


def _unless_champion(result: Result, figure: str, refused: str, excused: str) -> Verdict:
    """Beyond a bound: refused, unless the figure is no more than the champion's."""
    found = _against_champion(result, figure)
    if found and found["mean"] is not None and found["mean"] <= 0:
        return Verdict(True, excused, figures={"beside_champion": found})
    return Verdict(False, refused, _severity(result))


def _with_figures(verdict: Verdict, figures: Mapping[str, Any]) -> Verdict:
    return dataclasses.replace(verdict, figures={**figures, **verdict.figures})


def _severity(result: Result) -> Severity:
    """A challenger is refused; where nothing serves yet, it is released for observation."""
    return "ERROR" if "champion" in result["policies"] else "WARN"


def _against_champion(result: Result, figure: str) -> dict[str, Any] | None:
    found = result["against_champion"]
    return None if found is None else dict(found[figure])


def _seen(result: Result) -> str:
    return (
        f"{result['sessions']} held-out session(s) of {result['episodes']} episode(s): too few to "
        "compare"
    )


def _with(found: Mapping[str, Any]) -> str:
    if found["interval"] is None:
        return f"{found['mean']:+.2f} (no interval)"
    low, high = found["interval"]
    return f"{found['mean']:+.2f} [{low:+.2f}, {high:+.2f}]"
