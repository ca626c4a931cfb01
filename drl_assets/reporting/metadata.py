"""Dagster metadata: tables and pictures of what an asset made.

Pictures (`pictures`) are PNGs inside Markdown, so they need no file and no server.
"""

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import numpy.typing as npt
import polars as pl

from drl_assets.reporting import figures as pictures
from drl_assets.reporting import markdown
from drl_core.policy.actions import ACTION_COUNT, Action
from drl_core.policy.features import FEATURES
from drl_core.telemetry.event import DeadLetter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from drl_assets.learning.data.episodes import Episodes
    from drl_assets.learning.evaluation.policies import QValues
    from drl_core.storage.patterns import AttackPattern

States = npt.NDArray[np.float32]


def _markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[Any]]
) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(markdown.markdown_table(header, rows))


def picture(figure: "Figure", about: str) -> dg.MarkdownMetadataValue:
    """A figure inside Markdown."""
    encoded = base64.b64encode(pictures.png(figure)).decode()
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
    return picture(
        pictures.feature_histograms(states), f"histogram of each of the {len(FEATURES)} features"
    )


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
    return picture(pictures.learning_curve(losses, returns), "learning curve")


def candidate_table(tried: Sequence[dict[str, Any]]) -> dg.MarkdownMetadataValue:
    """Regularisations that were tried, with what they gave on left-out sessions."""
    if not tried:
        return dg.MetadataValue.md("none was tried: see `regularisation`")
    return _markdown_table(list(tried[0]), [list(one.values()) for one in tried])


def policy_table(result: dict[str, Any]) -> dg.MarkdownMetadataValue:
    """Policies side by side, each figure with its 95 % interval."""
    return dg.MetadataValue.md(markdown.policies(result))


def group_table(found: dict[str, Any], what: str) -> dg.MarkdownMetadataValue:
    """Our figures within each attack type or source."""
    return dg.MetadataValue.md(markdown.groups(found, what))


def evaluation_pictures(
    result: dict[str, Any], q_values: "QValues", episodes: "Episodes"
) -> dict[str, dg.MarkdownMetadataValue]:
    """The pictures of an evaluation, by the name of their metadata entry."""
    figures = pictures.of_evaluation(result, q_values, episodes)
    return {name: picture(figure, name.replace("_", " ")) for name, figure in figures.items()}


def gate_table(gates: dict[str, dict[str, Any]]) -> dg.MarkdownMetadataValue:
    """What each gate said of a release."""
    rows = [
        (name, "passed" if one["passed"] else one["severity"], one["reason"])
        for name, one in gates.items()
    ]
    return _markdown_table(("gate", "verdict", "reason"), rows)


def pattern_table(patterns: Sequence["AttackPattern"]) -> dg.MarkdownMetadataValue:
    """Patterns by attack type and action."""
    counts: dict[tuple[str, str], int] = {}
    for one in patterns:
        key = (one.attack_type, Action(one.action).label)
        counts[key] = counts.get(key, 0) + 1
    rows = [(*key, count) for key, count in sorted(counts.items())]
    return _markdown_table(("attack type", "action", "patterns"), rows)
