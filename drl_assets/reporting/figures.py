"""Figures (matplotlib) for the Dagster UI and for reports on files.

Arrays and the table of `evaluate.evaluate_policies` come in, matplotlib figures come out;
`metadata` puts them into the Dagster UI, `markdown` into files. matplotlib is imported when one is
drawn, not when the code location loads.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from drl_core.policy.actions import TERMINAL, Action, allowed
from drl_core.policy.features import FEATURES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from drl_assets.learning.data.episodes import Episodes
    from drl_assets.learning.evaluation.policies import QValues

States = npt.NDArray[np.float32]

OURS = "#c44e52"
OTHERS = (
    *("#4c72b0", "#55a868", "#8172b3", "#ccb974", "#64b5cd", "#8c8c8c"),
    *("#937860", "#da8bc3", "#1b9e77", "#333333"),
)


def png(figure: "Figure") -> bytes:
    """The figure as a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()


def _figure(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (8, 3)
) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns)


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Ours in red on top, the others in quieter colours, the same in every picture."""
    others = [name for name in names if name != "drl"]
    styles: dict[str, dict[str, Any]] = {
        name: {"color": OTHERS[at % len(OTHERS)], "zorder": 2} for at, name in enumerate(others)
    }
    return styles | {"drl": {"color": OURS, "zorder": 3}}


def feature_histograms(states: States) -> "Figure":
    """A histogram of each feature: a row each, darker where there are more windows."""
    edges = np.linspace(0, 1, 41)
    counts = np.stack([np.histogram(column, edges)[0] for column in states.T])
    figure, axis = _figure(size=(8, 6))
    image = axis.imshow(
        np.log1p(counts), aspect="auto", cmap="Blues", extent=(0, 1, len(FEATURES) - 0.5, -0.5)
    )
    axis.set_yticks(range(len(FEATURES)), FEATURES, fontsize=7)
    axis.set_xlabel("value of the feature")
    figure.colorbar(image, label="log(1 + windows)")
    return figure


def learning_curve(losses: Sequence[float], returns: Sequence[float]) -> "Figure":
    """Loss over the run, and returns of the training episodes where there are any."""
    figure, axes = _figure(1, 2, (10, 3))
    axes[0].plot(losses, color=OTHERS[0])
    axes[0].set(title="loss", xlabel="stretch of training", yscale="log")
    if returns:
        axes[1].plot(returns, color="#bbbbbb", linewidth=0.5)
        window = max(len(returns) // 25, 1)
        mean = np.convolve(returns, np.ones(window) / window, "valid")
        axes[1].plot(np.arange(len(mean)) + window - 1, mean, color=OURS)
        axes[1].set(title="return of each training episode", xlabel="episode")
    else:
        axes[1].axis("off")
    return figure


def containment_against_interruption(result: dict[str, Any]) -> "Figure":
    """Containment against benign interruption, with intervals: up and left is better."""
    figure, axis = _figure(size=(8, 4.5))
    styles = _styles(list(result["policies"]))
    for name, metrics in result["policies"].items():
        x, y = metrics["benign_interruption"], metrics["containment"]
        if x is None or y is None:
            continue
        intervals = result["intervals"][name]
        axis.errorbar(
            x,
            y,
            xerr=_whiskers(x, intervals["benign_interruption"]),
            yerr=_whiskers(y, intervals["containment"]),
            fmt="o",
            markersize=9 if name == "drl" else 5,
            elinewidth=0.8,
            label=f"{name} ({metrics['review_load']:.0%} reviewed)",
            **styles[name],
        )
    axis.set(
        xlabel="benign episodes interrupted",
        ylabel="malicious episodes contained or reviewed",
        xlim=(-0.05, 1.05),
        ylim=(-0.05, 1.05),
    )
    _legend(axis, beside=True)
    return figure


def _whiskers(value: float, interval: list[float] | None) -> list[list[float]] | None:
    if interval is None:
        return None
    return [[max(value - interval[0], 0.0)], [max(interval[1] - value, 0.0)]]


def cost_curve(result: dict[str, Any]) -> "Figure":
    """Each score swept over its margin: utility, and containment, against benign interruption."""
    figure, axes = _figure(1, 2, (11, 4))
    styles = _styles(list(result["cost_curve"]))
    for name, curve in result["cost_curve"].items():
        for axis, key in zip(axes, ("utility", "containment"), strict=True):
            pairs = zip(curve["benign_interruption"], curve[key], strict=True)
            points = [pair for pair in pairs if None not in pair]
            if points:
                width = 2.0 if name == "drl" else 1.0
                axis.plot(*zip(*points, strict=True), linewidth=width, label=name, **styles[name])
    for axis, label in zip(
        axes, ("mean return per episode", "malicious episodes quarantined"), strict=True
    ):
        axis.set(xlabel="benign episodes interrupted", ylabel=label)
    _legend(axes[1])
    return figure


def containment_over_time(result: dict[str, Any]) -> "Figure":
    """Share of the malicious episodes that each policy has contained by a time."""
    figure, axis = _figure(size=(8, 4))
    curves = result["containment_over_time"]
    for name, curve in curves.items():
        axis.step(
            [0.0, *curve["seconds"]],
            [0.0, *curve["share"]],
            where="post",
            linewidth=2.0 if name == "drl" else 1.0,
            label=name,
            **_styles(list(curves))[name],
        )
    axis.set(
        xlabel="seconds since the episode's start",
        ylabel="malicious episodes contained or reviewed",
        ylim=(0, 1.02),
    )
    _legend(axis)
    return figure


def calibration(result: dict[str, Any]) -> "Figure":
    """Share of malicious episodes against the confidence that containing them is right."""
    figure, axis = _figure(size=(8, 4.5))
    axis.plot([0, 1], [0, 1], color="#bbbbbb", linestyle=":")
    every = result["calibration"]
    for name, one in every.items():
        if one["bins"]:
            axis.plot(
                [b["confidence"] for b in one["bins"]],
                [b["malicious"] for b in one["bins"]],
                marker="o",
                markersize=4,
                linewidth=2.0 if name == "drl" else 1.0,
                label=f"{name} (ECE {one['ece']:.2f}, Brier {one['brier']:.2f})",
                **_styles(list(every))[name],
            )
    axis.set(xlabel="confidence", ylabel="share that is malicious")
    _legend(axis, beside=True)
    return figure


def per_attack_type(result: dict[str, Any]) -> "Figure":
    """Our containment of each attack type with its interval, beside damage prevented."""
    types = {
        f"{name}\n{one['episodes']} episodes of {one['sessions']} session(s)": one
        for name, one in result["per_attack_type"].items()
        if one["malicious"]
    }
    figure, axis = _figure(size=(8, 1.2 + 0.5 * max(len(types), 1)))
    for at, one in enumerate(types.values()):
        for key, shift, colour in (
            ("containment", 0.12, OURS),
            ("damage_prevented", -0.12, OTHERS[0]),
        ):
            value = one["policies"]["drl"][key]
            if value is not None:
                axis.errorbar(
                    value,
                    at + shift,
                    xerr=_whiskers(value, one["intervals"][key]),
                    fmt="o",
                    color=colour,
                    label=key.replace("_", " ") if at == 0 else None,
                )
    axis.set_yticks(range(len(types)), list(types), fontsize=8)
    axis.set(
        xlim=(-0.02, 1.02), xlabel="share; the whiskers resample sessions, where there are two"
    )
    _legend(axis)
    return figure


def of_evaluation(
    result: dict[str, Any], q_values: "QValues", episodes: "Episodes"
) -> dict[str, "Figure"]:
    """All pictures of an evaluation by name; none of no episodes."""
    if not len(episodes):
        return {}
    return {
        "containment_against_interruption": containment_against_interruption(result),
        "cost_curve": cost_curve(result),
        "containment_over_time": containment_over_time(result),
        "calibration": calibration(result),
        "per_attack_type": per_attack_type(result),
        "timeline": decision_timeline(q_values, episodes),
    }


def decision_timeline(q_values: "QValues", episodes: "Episodes") -> "Figure":
    """Q-values over the longest malicious episode (the longest benign one where there is none).

    Isolation is raised where the policy raises it; after the decision that would end the episode
    it is monitored on.
    """
    from drl_assets.learning.data.environment import LockstepReplay

    chosen = int(np.argmax(episodes.lengths * np.where(episodes.malicious, 1e6, 1.0)))
    one = episodes.select(np.asarray([chosen]))
    replay, found, seconds = LockstepReplay(one), [], []
    marks: list[tuple[Action, float]] = []
    while len(replay.active):
        found.append(np.where(allowed(replay.level), q_values(replay), np.nan)[0])
        seconds.append(float(replay.carry[0, -1] + replay.windows[0, -2]))
        best = Action(int(np.nanargmax(found[-1])))
        if best and not (marks and marks[-1][0] in TERMINAL):
            marks.append((best, seconds[-1]))
        raised = best == Action.INCREASE_ISOLATION
        replay.step(np.full(1, best if raised else Action.CONTINUE_MONITORING))
    q = np.stack(found)
    figure, axes = _figure(2, 1, (9, 5))
    for action in Action:
        axes[0].plot(seconds, q[:, action], label=action.label)
    for _, at in marks:
        axes[0].axvline(at, color="black", linestyle=":", linewidth=0.8)
    labels = [f"{action.label} at {at:.1f} s" for action, at in marks]
    axes[0].set_title(", ".join(labels) or "monitored to the end", fontsize=9)
    axes[0].legend(fontsize=7)
    axes[0].set_ylabel("Q-value")
    axes[1].step(seconds, one.damage, where="pre", color=OURS)
    axes[1].set(
        xlabel=f"seconds of episode {one.names[0][1]} ({one.attack_type[0]})",
        ylabel="damage, unattended",
    )
    return figure


def _legend(axis: "Axes", *, beside: bool = False) -> None:
    where: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if beside else {}
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, **where)
