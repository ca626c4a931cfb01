"""Deduplication and carry-over between batches: which windows were seen, where the fold continues.

A sandbox may deliver an episode over many batches, and may deliver a window twice. What earlier
batches took is asked of `drl_assets.tables.episode_progress`; these functions apply it to a batch's
frames.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import polars as pl

from drl_assets.tables.episode_progress import EpisodeKey, EpisodeProgress
from drl_assets.tables.transforms import EPISODE
from drl_core.policy import features

Past = Mapping[EpisodeKey, EpisodeProgress]
"""Progress of the episodes that earlier batches know."""


def episodes_of(frame: pl.DataFrame) -> list[EpisodeKey]:
    """(sandbox_id, episode_id) of a frame, in its order."""
    return list(frame.select(EPISODE).unique(maintain_order=True).iter_rows())


def drop_seen(frame: pl.DataFrame, past: Past) -> tuple[pl.DataFrame, int]:
    """Drop windows that an earlier batch holds, and mark those that come too late for their order.

    Args:
        frame: a batch's ordered telemetry.
        past: progress before this batch.

    Returns:
        The frame with `late` (bool): a new window whose successors were folded before; it is kept,
        but no state is made from it. `gap` counts from the last window that any batch took. And the
        number of windows dropped.
    """
    ranges = [
        (*episode, first, end) for episode, known in past.items() for first, end in known.steps
    ]
    if not ranges:
        return frame.with_columns(late=pl.lit(value=False)), 0
    columns = {"sandbox_id": pl.String, "episode_id": pl.String, "first": pl.Int64, "end": pl.Int64}
    taken = pl.DataFrame(ranges, schema=columns, orient="row")
    numbered = frame.with_row_index("row")
    seen = numbered.join(taken, on=list(EPISODE)).filter(
        (pl.col("step") >= pl.col("first")) & (pl.col("step") < pl.col("end"))
    )["row"]
    reached = taken.group_by(EPISODE).agg(reached=pl.col("end").max())
    previous = pl.max_horizontal(pl.col("step").shift().over(EPISODE), pl.col("reached") - 1)
    kept = (
        numbered.filter(~pl.col("row").is_in(seen.implode()))
        .join(reached, on=list(EPISODE), how="left", maintain_order="left")
        .with_columns(
            late=(pl.col("step") < pl.col("reached")).fill_null(value=False),
            gap=(pl.col("step") - previous > 1).fill_null(value=False),
        )
        .drop("row", "reached")
    )
    return kept, len(frame) - len(kept)


def carries(episodes: list[EpisodeKey], past: Past) -> npt.NDArray[np.float64]:
    """What each episode begins this batch with, [E, 14]."""
    begin = features.start(len(episodes))
    for row, episode in enumerate(episodes):
        if episode in past:
            begin[row] = past[episode].carry
    return begin


def progress_after(
    telemetry: pl.DataFrame,
    past: Past,
    after: Mapping[EpisodeKey, npt.NDArray[np.float64]],
    batch: str,
) -> list[EpisodeProgress]:
    """How far each episode of a batch is: the steps it took here and the carry it ends with.

    Args:
        telemetry: the batch's ordered telemetry, late windows included.
        past: progress before this batch.
        after: the carry [14] of each episode that was folded here.
        batch: the batch's key.
    """
    fresh = features.start()[0]
    rows = []
    for episode, part in telemetry.group_by(EPISODE, maintain_order=True):
        sandbox_id, episode_id = str(episode[0]), str(episode[1])
        key = (sandbox_id, episode_id)
        steps = part["step"].to_numpy()
        runs = np.split(steps, np.flatnonzero(np.diff(steps) > 1) + 1)
        before = past[key].carry if key in past else fresh.tolist()
        carry = after[key].tolist() if key in after else before
        ranges = [(int(run[0]), int(run[-1]) + 1) for run in runs]
        rows.append(EpisodeProgress(sandbox_id, episode_id, batch, ranges, carry))
    return rows
