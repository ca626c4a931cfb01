"""What a person looks at in the Dagster UI: tables and pictures as metadata values.

Pictures are PNGs inside Markdown, so they need no file and no server. matplotlib is imported when
one is drawn, not when the code location loads.
"""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import numpy.typing as npt
import polars as pl

from drl_core.actions import ACTION_COUNT, CONTAINING, Action, allowed
from drl_core.features import FEATURES
from drl_core.telemetry import DeadLetter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from drl_assets.learning.episodes import Episodes
    from drl_assets.learning.network import QNetwork
    from drl_core.patterns import AttackPattern

States = npt.NDArray[np.float32]


def _markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[Any]]
) -> dg.MarkdownMetadataValue:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return dg.MetadataValue.md("\n".join(lines))


def _cell(value: Any) -> str:
    if value is None:
        return "–"  # noqa: RUF001 - a dash for no value
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _figure(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (8, 3)
) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns)


def _picture(figure: "Figure", about: str) -> dg.MarkdownMetadataValue:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return dg.MetadataValue.md(f"![{about}](data:image/png;base64,{encoded})")


def dead_letter_table(letters: Sequence[DeadLetter]) -> dg.MarkdownMetadataValue:
    """Refused records with their reasons."""
    return _markdown_table(
        ("source", "record", "field", "reason"),
        [(one.source, one.record, one.field, one.reason) for one in letters],
    )


def attack_type_table(frame: pl.DataFrame) -> dg.MarkdownMetadataValue:
    """Episodes, sessions and windows by label."""
    label = (
        pl.when(pl.col("is_malicious").is_null())
        .then(pl.lit("unlabelled"))
        .when(pl.col("is_malicious"))
        .then(pl.col("attack_type").fill_null("malicious"))
        .otherwise(pl.lit("benign"))
    )
    counts = (
        frame.group_by(label.alias("label"))
        .agg(
            pl.struct("sandbox_id", "episode_id").n_unique().alias("episodes"),
            pl.col("session_id").n_unique().alias("sessions"),
            pl.len().alias("windows"),
        )
        .sort("label")
    )
    return _markdown_table(counts.columns, counts.rows())


def feature_table(states: States) -> dg.MarkdownMetadataValue:
    """Quantiles of each feature."""
    if not len(states):
        return _markdown_table(("feature",), [])
    marks = np.quantile(states, [0, 0.5, 0.95, 1], axis=0).T
    rows = [
        (name, *map(float, quantiles), float((column == 0).mean()))
        for name, quantiles, column in zip(FEATURES, marks, states.T, strict=True)
    ]
    return _markdown_table(("feature", "min", "median", "95 %", "max", "share of 0"), rows)


def feature_histograms(states: States) -> dg.MarkdownMetadataValue:
    """A histogram of each feature: a row each, darker where there are more windows."""
    if not len(states):
        return dg.MetadataValue.md("no windows in this batch")
    edges = np.linspace(0, 1, 41)
    counts = np.stack([np.histogram(column, edges)[0] for column in states.T])
    figure, axis = _figure(size=(8, 6))
    image = axis.imshow(
        np.log1p(counts), aspect="auto", cmap="Blues", extent=(0, 1, len(FEATURES) - 0.5, -0.5)
    )
    axis.set_yticks(range(len(FEATURES)), FEATURES, fontsize=7)
    axis.set_xlabel("value of the feature")
    figure.colorbar(image, label="log(1 + windows)")
    return _picture(figure, "histogram of each of the 30 features")


def reward_table(frame: pl.DataFrame) -> dg.MarkdownMetadataValue:
    """Mean hindsight reward of each action, benign beside malicious."""
    labelled = frame.filter(pl.col("is_malicious").is_not_null())
    rewards = labelled["rewards"].to_numpy().reshape(-1, ACTION_COUNT).astype(np.float64)
    malicious = labelled["is_malicious"].to_numpy()
    rows = []
    for action in Action:
        column = np.where(np.isfinite(rewards[:, action]), rewards[:, action], np.nan)
        means = [
            float(np.nanmean(column[mask])) if np.isfinite(column[mask]).any() else None
            for mask in (~malicious, malicious)
        ]
        rows.append((action.label, *means))
    return _markdown_table(("action", "benign", "malicious"), rows)


def learning_curve(losses: Sequence[float], returns: Sequence[float]) -> dg.MarkdownMetadataValue:
    """Loss over the run, and returns of the training episodes where there are any."""
    figure, axes = _figure(1, 2, (10, 3))
    axes[0].plot(losses, color="#4c72b0")
    axes[0].set(title="loss", xlabel="stretch of training", yscale="log")
    if returns:
        axes[1].plot(returns, color="#bbbbbb", linewidth=0.5)
        window = max(len(returns) // 25, 1)
        mean = np.convolve(returns, np.ones(window) / window, "valid")
        axes[1].plot(np.arange(len(mean)) + window - 1, mean, color="#c44e52")
        axes[1].set(title="return of each training episode", xlabel="episode")
    else:
        axes[1].axis("off")
    return _picture(figure, "learning curve")


_METRICS = (
    "utility",
    "containment",
    "benign_interruption",
    "review_load",
    "containment_at_1pct",
    "time_to_containment_s",
    "damage_prevented",
)


def policy_table(result: dict[str, Any]) -> dg.MarkdownMetadataValue:
    """Policies side by side, utility with its interval."""
    rows = []
    for name, metrics in result["policies"].items():
        interval = result["intervals"][name]["utility"]
        shown = _cell(metrics["utility"])
        if interval:
            shown += f" [{interval[0]:.2f}, {interval[1]:.2f}]"
        rows.append((name, shown, *(metrics[key] for key in _METRICS[1:])))
    return _markdown_table(("policy", *_METRICS), rows)


def policy_plot(result: dict[str, Any]) -> dg.MarkdownMetadataValue:
    """Containment against benign interruption: up and left is better."""
    figure, axis = _figure(size=(7, 4))
    for name, metrics in result["policies"].items():
        x, y = metrics["benign_interruption"], metrics["containment"]
        if x is not None and y is not None:
            axis.scatter(
                x, y, s=90 if name == "drl" else 40, color="#c44e52" if name == "drl" else "#4c72b0"
            )
            axis.annotate(name, (x, y), textcoords="offset points", xytext=(6, -3), fontsize=8)
    axis.set(
        xlabel="benign episodes interrupted",
        ylabel="malicious episodes contained or reviewed",
        xlim=(-0.05, 1.25),
        ylim=(-0.05, 1.1),
    )
    return _picture(figure, "containment against benign interruption")


def decision_timeline(network: "QNetwork", episodes: "Episodes") -> dg.MarkdownMetadataValue:
    """Q-values over one held-out malicious episode (a benign one where there is none)."""
    import torch

    from drl_core import features

    if not len(episodes):
        return dg.MetadataValue.md("no held-out episode yet")
    chosen = int(np.argmax(episodes.malicious))
    one = episodes.select(np.asarray([chosen]))
    states, _ = features.fold(one.windows, one.first, one.carry)
    with torch.no_grad():
        q = network(torch.from_numpy(states)).numpy()
    level = one.windows[:, -1].astype(np.int64)
    best = np.where(allowed(level), q, -np.inf).argmax(axis=1)
    seconds = one.carry[0, -1] + np.cumsum(one.windows[:, -2])
    figure, axes = _figure(2, 1, (9, 5))
    for action in Action:
        axes[0].plot(seconds, q[:, action], label=action.label)
    stops = np.flatnonzero(np.isin(best, (*CONTAINING, Action.REQUEST_HUMAN_REVIEW)))
    if len(stops):
        axes[0].axvline(seconds[stops[0]], color="black", linestyle=":")
        axes[0].set_title(
            f"{Action(best[stops[0]]).label} at {seconds[stops[0]]:.1f} s", fontsize=9
        )
    axes[0].legend(fontsize=7)
    axes[0].set_ylabel("Q-value")
    axes[1].step(seconds, one.damage, where="pre", color="#c44e52")
    axes[1].set(
        xlabel=f"seconds of episode {one.names[0][1]} ({one.attack_type[0]})", ylabel="damage"
    )
    return _picture(figure, "timeline of one episode's decision")


def pattern_table(patterns: Sequence["AttackPattern"]) -> dg.MarkdownMetadataValue:
    """Patterns by attack type and action."""
    counts: dict[tuple[str, str], int] = {}
    for one in patterns:
        key = (one.attack_type, Action(one.action).label)
        counts[key] = counts.get(key, 0) + 1
    rows = [(*key, count) for key, count in sorted(counts.items())]
    return _markdown_table(("attack type", "action", "patterns"), rows)
