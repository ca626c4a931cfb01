"""The evaluation report: one Markdown file with its pictures beside it.

The table of `evaluate.evaluate_policies` comes in; `report.md` and PNG files go out. The Dagster
UI shows the same tables.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drl_assets.reporting import figures
from drl_core.files import write_atomically

if TYPE_CHECKING:
    from drl_assets.learning.data.episodes import Episodes
    from drl_assets.learning.evaluation.policies import QValues

FIGURES = (
    "utility",
    "containment",
    "benign_interruption",
    "review_load",
    "containment_at_1pct",
    "time_to_containment_s",
    "damage_prevented",
)

ABOUT = {
    "containment_against_interruption": "Up and left is better; whiskers: 95 % intervals.",
    "cost_curve": (
        "Each policy's score swept over its margin: quarantine at the first window above it, "
        "without isolation and review, so that scores are compared on equal terms."
    ),
    "containment_over_time": "Share of the malicious episodes ended by a time.",
    "calibration": (
        "Confidence that containing is right, the highest of an episode while only monitoring: for "
        "`drl` the probability of malice implied by its Q-values, 1 + Q(quarantine) / cost of "
        "interrupting; for classifiers their own probability. Right: the episode is malicious. ECE "
        "over ten bins; each bin's share against its mean confidence."
    ),
    "per_attack_type": "Ours, on the malicious episodes of each type.",
    "timeline": "Q-values over one episode; dotted: where the policy isolates and ends it.",
}


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; numbers with three decimals, a dash for None."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"  # noqa: RUF001 - a dash for no value
    if isinstance(value, float):
        return f"{value:z.3f}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    shown = _cell(value)
    return shown if interval is None else f"{shown} [{interval[0]:z.2f}, {interval[1]:z.2f}]"


def policies(result: Mapping[str, Any]) -> str:
    """Policies side by side, each figure with its 95 % interval."""
    rows = [
        (name, *(_with_interval(metrics[key], result["intervals"][name][key]) for key in FIGURES))
        for name, metrics in result["policies"].items()
    ]
    return markdown_table(("policy", *FIGURES), rows)


def groups(found: Mapping[str, Any], what: str) -> str:
    """Our figures within each attack type or source."""
    keys = [key for key in FIGURES if key != "containment_at_1pct"]
    rows = [
        (
            name,
            *(one[key] for key in ("episodes", "malicious", "sessions")),
            *(_with_interval(one["policies"]["drl"][k], one["intervals"][k]) for k in keys),
        )
        for name, one in found.items()
    ]
    return markdown_table((what, "episodes", "malicious", "sessions", *keys), rows)


def advantages(result: Mapping[str, Any]) -> str:
    """Our mean return minus each policy's, paired by episode."""
    rows = [
        (name, _with_interval(result["advantage_mean"][name], interval))
        for name, interval in result["advantage"].items()
    ]
    return markdown_table(("minus", "mean return, drl minus this policy"), rows)


def off_policy(found: Mapping[str, Any]) -> str:
    """Off-policy estimates from the log of real interventions."""
    if not found["decisions"]:
        return "No window carries a real intervention: nothing can be estimated from logs."
    lines = [
        f"{found['decisions']} decisions in {found['episodes']} episodes of {found['sessions']} "
        f"sessions; effective sample size {_cell(found['effective_sample_size'])} of episodes.",
        "",
        markdown_table(
            ("estimator", "value"),
            [
                (name.replace("_", " "), _with_interval(found[name], found["intervals"][name]))
                for name in ("logged", "importance_sampling", "weighted", "doubly_robust")
            ],
        ),
        "",
        markdown_table(
            ("action", "logged", "wanted by the policy", "effective sample size", "identifiable"),
            [
                (
                    action,
                    one["logged"],
                    one["wanted"],
                    one["effective_sample_size"],
                    "yes" if one["identifiable"] else "not identifiable",
                )
                for action, one in found["actions"].items()
            ],
        ),
    ]
    return "\n".join(lines)


def write(
    folder: Path,
    result: dict[str, Any],
    q_values: "QValues",
    episodes: "Episodes",
    about: Mapping[str, Any],
) -> Path:
    """Write `report.md` and its pictures.

    Args:
        folder: made where it is missing; files of the same names are replaced.
        result: from `evaluate.evaluate_policies`; `off_policy` is shown where it is there.
        q_values: of the policy, for the timeline.
        episodes: that it was evaluated on.
        about: what reproduces it: command, seed, model version, commit and so on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    for name, figure in figures.of_evaluation(result, q_values, episodes).items():
        write_atomically(folder / f"{name}.png", figures.png(figure))
        title = name.replace("_", " ")
        shown += [f"## {title.capitalize()}", ABOUT[name], f"![{title}]({name}.png)"]
    held = [tuple(one.values()) for one in result["held_out_sessions"]]
    parts = [
        f"# Evaluation of {about['model_version']}",
        f"{result['episodes']} episodes, {result['malicious']} malicious, of {result['sessions']} "
        f"sessions ({result['sessions_malicious']} with malicious, {result['sessions_benign']} "
        f"with benign episodes); {result['unlabelled']} unlabelled episodes left out.",
        markdown_table(("", "value"), list(about.items())),
        *(f"- {note}" for note in result["notes"]),
        "## Policies",
        "`drl` is the policy as served; every other one is in the table by its own name. 95 % "
        "intervals in brackets: whole sessions resampled, for `benign_interruption` Clopper and "
        "Pearson's, which takes episodes as independent. `containment_at_1pct` compares scores: "
        "containment by terminate or quarantine alone, at the margin where 1 % of the benign "
        "episodes are interrupted.",
        policies(result),
        "## Advantage",
        "Paired by episode, whole sessions resampled.",
        advantages(result),
        *shown,
        "## Attack types",
        groups(result["per_attack_type"], "attack type"),
        "## Sources",
        "A session's source is the sandbox that recorded it (`sandbox_id`).",
        groups(result["per_source"], "source"),
        "## Off-policy estimates",
        off_policy(result["off_policy"]) if "off_policy" in result else "Not asked for.",
        "## Held-out sessions",
        markdown_table(("session", "source", "episodes", "malicious", "our mean return"), held),
    ]
    path = folder / "report.md"
    write_atomically(path, ("\n\n".join(parts) + "\n").encode())
    return path
