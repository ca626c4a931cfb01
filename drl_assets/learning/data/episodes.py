"""Recorded episodes as arrays, and their counterfactual windows under isolation.

An experience frame comes in; `Episodes` holds whole episodes back to back. The replay environment,
the full-information learner and the evaluation all read it.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl

from drl_core.policy import features
from drl_core.telemetry.event import SIGNALS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Scalar = TypeVar("Scalar", bound=np.generic)

LEVEL = features.SIGNAL_COUNT + 1
"""Column of the isolation level in a window row."""

NETWORK = [SIGNALS.index(n) for n in ("network_connections", "bytes_sent", "bytes_received")]
"""Signals that isolation level 1 cuts off from the next window on."""


@dataclass(frozen=True)
class Episodes:
    """E labelled episodes of N windows together, back to back."""

    windows: Floats
    """[N, 14], the fold's input rows, as recorded."""
    offsets: Ints
    """[E + 1]; episode e is rows offsets[e]:offsets[e + 1]."""
    carry: Floats
    """[E, 14], what each episode begins with (zeros unless it began in an earlier batch)."""
    damage: Floats
    """[N], of each window if nobody intervenes, in the cost table's unit."""
    steps: Ints
    """[N], position of each window in its episode, as the sandbox counts."""
    timestamps_ms: Ints
    """[N], end of each window in epoch milliseconds; 0 where the source gave no time."""
    malicious: Bools
    """[E]."""
    ended: Bools
    """[E], True where the artefact ended by itself, False where only the record ends."""
    session: list[str]
    """[E], what evaluation splits by."""
    attack_type: list[str]
    """[E], `benign` or the label's attack type."""
    names: list[tuple[str, str]]
    """[E], (sandbox_id, episode_id)."""
    artifacts: list[str | None]
    """[E], SHA-256 of the executed file where known."""
    unlabelled: int = 0
    """Episodes of the frame that carry no label and are therefore not here."""

    def __len__(self) -> int:
        return len(self.malicious)

    @property
    def lengths(self) -> Ints:
        """Windows per episode, [E]."""
        return np.diff(self.offsets)

    @property
    def first(self) -> Bools:
        """True on the first row of each episode, [N]."""
        mark = np.zeros(len(self.windows), dtype=np.bool_)
        mark[self.offsets[:-1]] = True
        return mark

    @property
    def next_damage(self) -> Floats:
        """Damage of the window after each row, 0 after the last: a decision answers for it, [N]."""
        following = np.append(self.damage[1:], 0.0)
        following[self.offsets[1:] - 1] = 0.0
        return following

    def per_row(self, of_episode: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Repeat a per-episode array [E] for every row, [N]."""
        return np.repeat(of_episode, self.lengths)

    def select(self, chosen: Ints) -> "Episodes":
        """The chosen episodes, in that order."""
        rows = np.concatenate(
            [np.arange(self.offsets[e], self.offsets[e + 1]) for e in chosen]
            or [np.empty(0, dtype=np.int64)]
        )
        return Episodes(
            windows=self.windows[rows],
            offsets=np.append(0, np.cumsum(self.lengths[chosen])),
            carry=self.carry[chosen],
            damage=self.damage[rows],
            steps=self.steps[rows],
            timestamps_ms=self.timestamps_ms[rows],
            malicious=self.malicious[chosen],
            ended=self.ended[chosen],
            session=[self.session[e] for e in chosen],
            attack_type=[self.attack_type[e] for e in chosen],
            names=[self.names[e] for e in chosen],
            artifacts=[self.artifacts[e] for e in chosen],
        )


def from_experiences(frame: pl.DataFrame) -> Episodes:
    """Labelled episodes of an experience frame; unlabelled ones are counted and left out.

    Args:
        frame: rows of one or more batches from `pipeline.experience_frame`, each batch's episodes
            contiguous. A part of an episode that came in a later batch stands as an episode of its
            own that begins with the carry of the part before.
    """
    marked = frame.with_columns(part=pl.col("episode_start").cast(pl.Int64).cum_sum())
    labelled = marked.filter(pl.col("is_malicious").is_not_null())
    unlabelled = marked["part"].n_unique() - labelled["part"].n_unique()
    heads = labelled.group_by("part", maintain_order=True).agg(
        pl.len().alias("rows"),
        pl.col("carry").first(),
        pl.col("is_malicious").first(),
        pl.col("terminated").last(),
        pl.col("session_id").first(),
        pl.col("attack_type").drop_nulls().first(),
        pl.col("sandbox_id").first(),
        pl.col("episode_id").first(),
        pl.col("artifact_sha256").first(),
    )
    malicious = heads["is_malicious"].to_numpy()
    types = heads["attack_type"].fill_null("unknown").to_list()
    return Episodes(
        windows=labelled["window"].to_numpy().reshape(-1, features.WINDOW_WIDTH),
        offsets=np.append(0, heads["rows"].cum_sum().to_numpy()).astype(np.int64),
        carry=heads["carry"].to_numpy().reshape(-1, features.CARRY_WIDTH),
        damage=labelled["damage"].to_numpy(),
        steps=labelled["step"].to_numpy(),
        timestamps_ms=labelled["timestamp_ms"].fill_null(0).to_numpy(),
        malicious=malicious,
        ended=heads["terminated"].to_numpy(),
        session=heads["session_id"].to_list(),
        attack_type=[t if bad else "benign" for t, bad in zip(types, malicious, strict=True)],
        names=list(zip(heads["sandbox_id"].to_list(), heads["episode_id"].to_list(), strict=True)),
        artifacts=heads["artifact_sha256"].to_list(),
        unlabelled=unlabelled,
    )


def isolated(windows: Floats, level: Ints) -> Floats:
    """Windows as they would be observed at an isolation level.

    Level 1 and above cut the network off; a signal that was not measured stays unmeasured. This is
    the one place where telemetry is not exogenous. A level that the recording was already in is
    never lowered, and what was measured under it stands.

    Args:
        windows: [N, 14], as recorded.
        level: [N], 0..3.
    """
    changed = windows.copy()
    changed[:, LEVEL] = np.maximum(changed[:, LEVEL], level)
    cut = np.flatnonzero((level >= 1) & (windows[:, LEVEL] < 1))
    columns = np.ix_(cut, np.asarray(NETWORK))
    network = changed[columns]
    changed[columns] = np.where(np.isnan(network), network, 0.0)
    return changed
