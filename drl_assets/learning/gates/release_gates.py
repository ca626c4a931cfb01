"""Whether a challenger may be released: each gate a pure function from figures to a verdict.

The table of `evaluation.table`, the challenger's tuned baselines and the bounds of the
configuration come in; a `Verdict` comes out, which a check shows in the UI and a release carries in
its signed manifest. With a champion an ERROR refuses the challenger and the champion goes on
serving. Before the first release, what was not shown is a WARN, since a new deployment only
observes (docs/decisions/0016).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from drl_assets.learning.evaluation.bootstrap import Interval
from drl_core.files import write_atomically
from drl_core.settings import Gates

Severity = Literal["ERROR", "WARN"]
Result = Mapping[str, Any]
"""What `evaluation.table` returns."""


@dataclass(frozen=True)
class Verdict:
    """What a gate found."""

    name: str
    passed: bool
    reason: str
    """One sentence, also where it passed."""
    severity: Severity = "ERROR"
    """Of a gate that is not passed: ERROR refuses, WARN lets through and says so."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Numbers, texts and lists that the verdict rests on."""


def record(folder: Path, verdict: Verdict) -> None:
    """Keep a verdict in a folder, one file a gate; a later one of the same gate replaces it."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: getattr(verdict, name) for name in ("passed", "severity", "reason")}
    write_atomically(folder / f"{verdict.name}.json", msgspec.json.encode(kept))


def recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """Gate -> passed, severity and reason, as `record` kept them."""
    return {
        path.stem: msgspec.json.decode(path.read_bytes()) for path in sorted(folder.glob("*.json"))
    }


def not_worse_than_doing_nothing_or_everything(result: Result) -> Verdict:
    """Worse than never acting or always terminating, beyond doubt, is refused at any time."""
    name = "not_worse_than_doing_nothing_or_everything"
    found = {other: result["advantage"][other] for other in ("never_act", "always_terminate")}
    figures = {f"advantage_over_{other}": interval for other, interval in found.items()}
    if any(interval is None for interval in found.values()):
        return Verdict(
            name, False, f"{_seen(result)}; released for observation without evidence", "WARN"
        )
    worse = [other for other, interval in found.items() if interval[1] < 0]
    reason = f"worse than {', '.join(worse)}" if worse else "not worse than either"
    return Verdict(name, not worse, reason, figures=figures)


def not_worse_than_champion(result: Result, bounds: Gates) -> Verdict:
    """The lower bound of the paired difference in utility is above -delta.

    Overall, and within each attack type (benign is one) of at least `type_sessions` held-out
    sessions. Types with fewer are reported, not judged: an interval from so few says little.
    """
    name = "not_worse_than_champion"
    overall = _against_champion(result, "utility")
    if overall is None:
        return Verdict(name, True, "does not apply: there is no champion yet")
    types = {
        kind: {**group["against_champion"]["utility"], "sessions": group["sessions"]}
        for kind, group in result["per_attack_type"].items()
    }
    judged = [kind for kind, one in types.items() if one["sessions"] >= bounds.type_sessions]
    figures = {"overall": overall, "types": types, "judged_types": judged}
    if overall["interval"] is None:
        return Verdict(name, False, f"{_seen(result)}; the champion stays", figures=figures)
    short = [_shortfall("overall", overall, bounds.delta)]
    short += [_shortfall(kind, types[kind], bounds.delta_per_type) for kind in judged]
    reasons = [text for text in short if text]
    gain = f"utility per episode {_with(overall)} beside the champion's"
    return Verdict(name, not reasons, "; ".join(reasons) or gain, figures=figures)


def _shortfall(of: str, found: Mapping[str, Any], delta: float) -> str | None:
    """What is wrong with a paired difference, None where it is shown to be no worse than delta."""
    low, high = found["interval"] or (-math.inf, math.inf)
    if low > -delta:
        return None
    how = "worse" if high < -delta else "not shown to be no worse"
    return (
        f"{of}: {how}, utility per episode {_with(found)} beside the champion's, -{delta} allowed"
    )


def interruption_within_budget(result: Result, bounds: Gates) -> Verdict:
    """The upper bound of benign interruption is within the budget, or not above the champion's.

    Where not one benign episode was interrupted, and there are too few to bound it any better, it
    is a warning that says how many would do.
    """
    name, budget = "interruption_within_budget", bounds.interruption_budget
    share = result["policies"]["drl"]["benign_interruption"]
    interval = result["intervals"]["drl"]["benign_interruption"]
    benign = result["episodes"] - result["malicious"]
    figures = {"benign_episodes": benign, "benign_interruption": share, "interval": interval}
    if interval and interval[1] <= budget:
        return Verdict(name, True, f"at most {interval[1]:.2%} of benign episodes", figures=figures)
    upper = interval[1] if interval else 1.0
    beyond = f"{share or 0:.2%} of {benign} benign episodes interrupted, up to {upper:.2%}"
    champion = _against_champion(result, "benign_interruption")
    if champion and champion["mean"] is not None and champion["mean"] <= 0:
        reason = f"{beyond}: beyond {budget:.2%}, but no more than by the champion"
        return Verdict(name, True, reason, figures={**figures, "beside_champion": champion})
    if not share:
        needed = _benign_needed(budget)
        reason = f"{beyond}: too few to show {budget:.2%}, which takes {needed}"
        return Verdict(name, False, reason, "WARN", {**figures, "benign_needed": needed})
    return Verdict(name, False, f"{beyond}: beyond {budget:.2%}", _severity(result), figures)


def _benign_needed(budget: float) -> int | None:
    """Benign episodes of which none is interrupted that bound the share by a budget."""
    return math.ceil(math.log(0.025) / math.log1p(-budget)) if 0 < budget < 1 else None


def not_worse_than_supervised(
    result: Result, baselines: Mapping[str, Any], bounds: Gates
) -> Verdict:
    """Not worse by delta, beyond doubt, than the best supervised baseline.

    The best is that of the highest utility when it was tuned, on sessions that were left out (the
    one-feature rule has too little freedom to need it); never that of these episodes, since the
    best of several by luck would be picked.
    """
    name = "not_worse_than_supervised"
    tuned = {
        other: one["utility"]
        for other, one in baselines.items()
        if "utility" in one and (one["folds"] or other == "threshold_rule")
    }
    if not tuned:
        return Verdict(name, False, "no supervised baseline: one class only", "WARN")
    best = max(tuned, key=tuned.__getitem__)
    interval: Interval = result["advantage"][best]
    found = {"mean": result["advantage_mean"][best], "interval": interval}
    figures = {"best": best, "tuning_utility": tuned, "advantage": found}
    if interval is None:
        return Verdict(name, False, f"{_seen(result)} with {best}", "WARN", figures)
    reason = f"utility per episode {_with(found)} beside {best}"
    passed = interval[1] >= -bounds.delta
    return Verdict(
        name, passed, reason if passed else f"worse: {reason}", _severity(result), figures
    )


def review_within_cap(result: Result, bounds: Gates) -> Verdict:
    """The lower bound of the review load is within its cap, or it is not above the champion's."""
    name, cap = "review_within_cap", bounds.review_cap
    load = result["policies"]["drl"]["review_load"]
    interval: Interval = result["intervals"]["drl"]["review_load"]
    figures = {"review_load": load, "interval": interval}
    if load is None:
        return Verdict(name, False, _seen(result), _severity(result), figures)
    reason = f"{load:.1%} of all episodes are sent to review"
    if (interval[0] if interval else load) <= cap:
        return Verdict(name, True, reason, figures=figures)
    champion = _against_champion(result, "review_load")
    if champion and champion["mean"] <= 0:
        figures["beside_champion"] = champion
        return Verdict(name, True, f"{reason}, no more than by the champion", figures=figures)
    return Verdict(name, False, f"{reason}, beyond {cap:.0%}", _severity(result), figures)


def oracle_regret(shares: Mapping[str, float] | None, bounds: Gates) -> Verdict:
    """On generators of known optimum the learner stays within bounds of it.

    Args:
        shares: generator -> regret as a share of always-monitor's (`probation.regrets`), None
            where the learner is not one that learns from trajectories.
        bounds: the gates' section of the configuration.
    """
    name = "oracle_regret"
    if shares is None:
        return Verdict(name, False, "not applicable to the report's preset", "WARN")
    figures = {f"regret_share_{oracle}": share for oracle, share in shares.items()}
    text = ", ".join(f"{oracle} {share:.1%}" for oracle, share in shares.items())
    reason = f"regret as a share of always-monitor's: {text}; {bounds.oracle_regret:.0%} allowed"
    passed = all(share <= bounds.oracle_regret for share in shares.values())
    return Verdict(name, passed, reason, figures=figures)


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
