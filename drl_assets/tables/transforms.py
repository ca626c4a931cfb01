"""Table transforms, events to experiences: the graph's three tables as pure functions over frames.

Events come in, in any order and with redeliveries; `telemetry_frame` gives one row a window in the
order of its episode, `state_frame` adds the 30 features (the same fold as everywhere), and
`experience_frame` adds what each of the five actions would have been worth. The assets, `drl train`
and `drl evaluate` all go through here; nothing here knows of Dagster, files or a database.
"""

import hashlib
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from drl_core.policy import features, reward
from drl_core.policy.actions import ACTION_COUNT, TERMINAL
from drl_core.policy.reward import CostTable
from drl_core.telemetry.event import SIGNALS, Event

KEYS = ("sandbox_id", "episode_id", "step")
EPISODE = ("sandbox_id", "episode_id")

FLAGS = SIGNALS[9:]
TELEMETRY_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "sandbox_id": pl.String,
    "episode_id": pl.String,
    "step": pl.Int64,
    "stage": pl.String,
    "session_id": pl.String,
    "artifact_sha256": pl.String,
    "timestamp_ms": pl.Int64,
    "window_s": pl.Float64,
    "isolation_level": pl.Int64,
    "episode_end": pl.Boolean,
    **{name: pl.Boolean if name in FLAGS else pl.Float64 for name in SIGNALS},
    "process": pl.String,
    "extra": pl.String,
    "action": pl.Int64,
    "propensity": pl.Float64,
    "outcome": pl.String,
    "is_malicious": pl.Boolean,
    "severity": pl.Float64,
    "attack_type": pl.String,
}
LABELS = ("is_malicious", "severity", "attack_type")
"""Columns that no feature may read."""

_PLAIN = ("sandbox_id", "step", "window_s", "isolation_level", "episode_end", *SIGNALS, *LABELS)


class Telemetry(NamedTuple):
    """The ordered table, and what was set aside."""

    frame: pl.DataFrame
    duplicates: int


def telemetry_frame(segments: Iterable[list[Event]]) -> Telemetry:
    """One row a window, grouped by episode and ordered by step; a redelivered window is dropped.

    Args:
        segments: events as landed; the first delivery of a window is the one that counts.

    Returns:
        A frame of TELEMETRY_SCHEMA plus `gap` (bool: steps are missing before this one), and the
        number of redelivered events that were dropped.
    """
    frames = [_columns(events) for events in segments if events]
    if not frames:
        return Telemetry(pl.DataFrame(schema={**TELEMETRY_SCHEMA, "gap": pl.Boolean}), 0)
    everything = pl.concat(frames)
    frame = everything.unique(subset=KEYS, keep="first", maintain_order=True).sort(KEYS)
    frame = frame.with_columns(
        session_id=pl.coalesce(
            "session_id", "artifact_sha256", pl.concat_str(EPISODE, separator="/")
        ),
        gap=(pl.col("step").diff().over(EPISODE) > 1).fill_null(value=False),
    )
    return Telemetry(frame, len(everything) - len(frame))


def _columns(events: list[Event]) -> pl.DataFrame:
    plain = zip(*map(attrgetter(*_PLAIN), events), strict=True)
    data: dict[str, object] = dict(zip(_PLAIN, map(list, plain), strict=True))
    data["episode_id"] = [str(event.episode_id) for event in events]
    data["stage"] = [event.stage.value for event in events]
    data["session_id"] = [None if e.session_id is None else str(e.session_id) for e in events]
    data["artifact_sha256"] = [
        None if e.artifact_sha256 is None else e.artifact_sha256.lower() for e in events
    ]
    data["timestamp_ms"] = [event.timestamp_ms for event in events]
    for name in ("process", "extra"):
        data[name] = [
            None if (value := getattr(event, name)) is None else msgspec.json.encode(value).decode()
            for event in events
        ]
    done = [event.intervention for event in events]
    data["action"] = [None if one is None else one.action for one in done]
    data["propensity"] = [None if one is None else one.propensity for one in done]
    data["outcome"] = [None if one is None else one.outcome.value for one in done]
    return pl.DataFrame({name: data[name] for name in TELEMETRY_SCHEMA}, schema=TELEMETRY_SCHEMA)


def windows_of(frame: pl.DataFrame) -> npt.NDArray[np.float64]:
    """The fold's input rows, float64 [N, 14]; null becomes NaN."""
    columns = (*SIGNALS, "window_s", "isolation_level")
    return np.column_stack(
        [frame[name].cast(pl.Float64).fill_null(float("nan")).to_numpy() for name in columns]
    ).reshape(len(frame), features.WINDOW_WIDTH)


def episode_starts(frame: pl.DataFrame) -> npt.NDArray[np.bool_]:
    """True on the first row of each episode of an ordered frame, bool [N]."""
    first = np.ones(len(frame), dtype=np.bool_)
    if len(frame):
        changed = frame.select(
            (pl.col("sandbox_id") != pl.col("sandbox_id").shift())
            | (pl.col("episode_id") != pl.col("episode_id").shift())
        ).to_series()
        first[1:] = changed.to_numpy()[1:]
    return first


class States(NamedTuple):
    """The states, and the carry that each episode ends this batch with."""

    frame: pl.DataFrame
    carry_after: npt.NDArray[np.float64]


def state_frame(telemetry: pl.DataFrame, carry: npt.NDArray[np.float64] | None = None) -> States:
    """The 30 features of each window.

    Args:
        telemetry: an ordered frame from `telemetry_frame`.
        carry: float64 [E, 14], what each episode (in the frame's order) carries from earlier
            batches; zeros when omitted.

    Returns:
        A frame of the keys, `window` [14] and `state` [30]; and the carries float64 [E, 14].
    """
    windows = windows_of(telemetry)
    first = episode_starts(telemetry)
    states, after = features.fold(windows, first, carry)
    frame = telemetry.select(KEYS).with_columns(
        window=pl.Series(windows, dtype=pl.Array(pl.Float64, features.WINDOW_WIDTH)),
        state=pl.Series(states, dtype=pl.Array(pl.Float32, features.FEATURE_COUNT)),
    )
    return States(frame, after)


def experience_frame(
    telemetry: pl.DataFrame,
    states: pl.DataFrame,
    carry: npt.NDArray[np.float64] | None = None,
    costs: CostTable = reward.DEFAULT_COSTS,
) -> pl.DataFrame:
    """One row a step, with the reward and terminal flag of each of the five actions in hindsight.

    The reward of `continue_monitoring` at step t charges the damage of window t + 1. A row is
    `terminated` for continue and isolate where the artefact ended by itself after it, `truncated`
    where only the record ends (a partial episode is kept and never becomes a terminal).

    Args:
        telemetry: the ordered telemetry frame.
        states: its state frame, row by row.
        carry: float64 [E, 14], what each episode began this batch with.
        costs: the cost table.

    Returns:
        Frame with keys, session_id, stage, window, carry, state, damage, rewards [5] (null where
        unlabelled, -inf where masked), terminal [5], terminated, truncated, gap, labels (of the
        whole episode, if any of its windows has one), and for real interventions action,
        propensity and outcome.
    """
    telemetry = _label_episodes(telemetry)
    first = episode_starts(telemetry)
    last = np.append(first[1:], True) if len(first) else first
    severity_column = telemetry["severity"].fill_null(1.0).to_numpy()
    malicious = telemetry["is_malicious"].fill_null(value=False).to_numpy()
    now = states["state"].to_numpy().reshape(-1, features.FEATURE_COUNT)[:, : len(SIGNALS)]
    damage = reward.damage(
        now,
        np.where(malicious, severity_column, 0.0),
        _extra_signals(telemetry, costs),
        costs,
    )
    next_damage = np.where(last, 0.0, np.append(damage[1:], 0.0)) if len(damage) else damage
    level = telemetry["isolation_level"].to_numpy()
    rewards = reward.hindsight(next_damage, malicious, level, costs)
    ended = telemetry["episode_end"].to_numpy() & last
    terminal = np.zeros((len(telemetry), ACTION_COUNT), dtype=np.bool_)
    terminal[:, list(TERMINAL)] = True
    terminal[ended] = True
    begin = np.full((len(telemetry), features.CARRY_WIDTH), np.nan)
    if len(telemetry):
        begin[first] = features.start(int(first.sum())) if carry is None else carry
    frame = states.with_columns(
        telemetry.select(
            "session_id",
            "stage",
            "artifact_sha256",
            "timestamp_ms",
            "gap",
            "action",
            "propensity",
            "outcome",
            *LABELS,
        ),
        carry=pl.Series(begin, dtype=pl.Array(pl.Float64, features.CARRY_WIDTH)),
        damage=pl.Series(damage, dtype=pl.Float64),
        rewards=pl.Series(rewards, dtype=pl.Array(pl.Float64, ACTION_COUNT)),
        terminal=pl.Series(terminal, dtype=pl.Array(pl.Boolean, ACTION_COUNT)),
        terminated=pl.Series(ended, dtype=pl.Boolean),
        truncated=pl.Series(last & ~ended, dtype=pl.Boolean),
        episode_start=pl.Series(first, dtype=pl.Boolean),
    )
    unlabelled = pl.col("is_malicious").is_null()
    return frame.with_columns(
        rewards=pl.when(unlabelled).then(None).otherwise("rewards"),
        damage=pl.when(unlabelled).then(None).otherwise("damage"),
    )


def _label_episodes(telemetry: pl.DataFrame) -> pl.DataFrame:
    """A label belongs to the whole episode, whichever of its windows carry it."""
    return telemetry.with_columns(
        pl.col("is_malicious").max().over(EPISODE),
        pl.col("severity").fill_null(pl.col("severity").max().over(EPISODE)),
        pl.col("attack_type").fill_null(pl.col("attack_type").drop_nulls().first().over(EPISODE)),
    )


def _extra_signals(telemetry: pl.DataFrame, costs: CostTable) -> dict[str, npt.NDArray[np.float64]]:
    return {
        name: telemetry["extra"]
        .str.json_path_match(f"$['{name}']")
        .cast(pl.Float64)
        .fill_null(0.0)
        .to_numpy()
        for name in costs.damage_extra
    }


def hold_out(frame: pl.DataFrame, share: float, known: Mapping[str, bool]) -> pl.DataFrame:
    """Mark the sessions that are kept for evaluation, with a column `held_out`.

    Splitting by session, never by row, is what keeps an evaluation honest: windows of one recording
    resemble each other far more than those of another. A session that was assigned before stays
    where it is. Of the new ones, `share` is drawn in each class (benign, malicious, unlabelled) by
    the hash of its name; of three or more at least one.

    Args:
        frame: rows with session_id and is_malicious.
        share: of the sessions, 0 to 1.
        known: session -> held out, of earlier batches.
    """
    chosen = {name for name, kept in known.items() if kept}
    new = (
        frame.filter(~pl.col("session_id").is_in(list(known)))
        .group_by("session_id")
        .agg(pl.col("is_malicious").max().cast(pl.Int8).fill_null(-1).alias("kind"))
    )
    for (_,), part in new.group_by("kind"):
        ranked = sorted((_unit_hash(name), name) for name in part["session_id"])
        count = int(share * len(ranked) + _unit_hash(ranked[0][1] + "/rounding"))
        if len(ranked) >= 3 and share > 0:
            count = min(max(count, 1), len(ranked) - 1)
        chosen.update(name for _, name in ranked[:count])
    return frame.with_columns(held_out=pl.col("session_id").is_in(list(chosen)))


def _unit_hash(text: str) -> float:
    digest = hashlib.sha256(f"hold-out:{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def experiences_of(
    events: Iterable[list[Event]], costs: CostTable = reward.DEFAULT_COSTS
) -> pl.DataFrame:
    """All three steps at once, for whole episodes: what `drl train` and `drl evaluate` use."""
    telemetry = telemetry_frame(events).frame
    return experience_frame(telemetry, state_frame(telemetry).frame, costs=costs)
