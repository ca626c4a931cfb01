"""Train and held-out split: which experiences a training may read, which only the evaluation."""

from typing import TYPE_CHECKING

import dagster as dg
import polars as pl

from drl_assets.defs.resources import Project

if TYPE_CHECKING:
    from drl_assets.learning.data.episodes import Episodes


def assigned_sessions(project: Project, sessions: pl.Series, before: str) -> dict[str, bool]:
    """Whether sessions were held out by batches before a key; new ones are not in the answer."""
    scan = project.tables.scan("experiences")
    if scan is None:
        return {}
    found = (
        scan.filter(pl.col("session_id").is_in(sessions.implode()), pl.col("batch") < before)
        .select("session_id", "held_out")
        .unique()
        .collect()
    )
    return dict(found.iter_rows())


def new_experiences(project: Project, learned: set[str]) -> tuple[pl.DataFrame, list[str]]:
    """Training rows of batches that have not been learned from, and the batches' keys.

    Raises:
        dg.Failure: there are none.
    """
    scan = project.tables.scan("experiences", without=learned)
    rows = None if scan is None else scan.collect()
    if rows is None or rows.is_empty():
        raise dg.Failure("no batch is new to the champion: import telemetry first (`drl import`)")
    return rows.filter(~pl.col("held_out")), sorted(rows["batch"].unique().to_list())


def rows_for_training(
    project: Project, batches: set[str], learned: set[str]
) -> pl.DataFrame | None:
    """Labelled training rows of these batches but for those learned from; None without any."""
    scan = project.tables.scan("experiences", without=learned)
    if scan is None or not batches - learned:
        return None
    return scan.filter(
        ~pl.col("held_out"),
        pl.col("is_malicious").is_not_null(),
        pl.col("batch").is_in(sorted(batches)),
    ).collect()


def held_out_rows(project: Project) -> pl.DataFrame:
    """All rows of the held-out sessions.

    Raises:
        dg.Failure: there are no experiences at all.
    """
    scan = project.tables.scan("experiences")
    if scan is None:
        raise dg.Failure("there are no experiences yet: import telemetry first (`drl import`)")
    return scan.filter(pl.col("held_out")).collect()


def held_out_episodes(project: Project) -> "Episodes":
    """All labelled episodes of the held-out sessions; raises as `held_out_rows`."""
    from drl_assets.learning.data.episodes import from_experiences

    return from_experiences(held_out_rows(project))


def new_labelled_rows(project: Project, learned: set[str]) -> tuple[int, str]:
    """Labelled training rows in live batches that are not yet learned from, and the newest key."""
    keys = [key for key in project.tables.keys("experiences") if key not in learned]
    rows = sum(
        pl.scan_parquet(project.tables.path("experiences", key))
        .filter(~pl.col("held_out"))
        .select(pl.col("is_malicious").count())
        .collect()
        .item()
        for key in keys
    )
    return rows, keys[-1] if keys else ""
