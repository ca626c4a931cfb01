"""Data contracts: the pandera schemas of the three tables, enforced by blocking checks."""

import pandera.polars as pa
import polars as pl

from drl_core.policy.actions import ACTION_COUNT
from drl_core.policy.features import FEATURE_COUNT, WINDOW_WIDTH
from drl_core.telemetry.event import SIGNALS, Outcome, Stage

_keys = {
    "sandbox_id": pa.Column(pl.String, pa.Check.str_matches(r"^[A-Za-z0-9._:-]{1,128}$")),
    "episode_id": pa.Column(pl.String, pa.Check.str_length(1, 256)),
    "step": pa.Column(pl.Int64, pa.Check.ge(0)),
}

TELEMETRY = pa.DataFrameSchema(
    {
        **_keys,
        "stage": pa.Column(pl.String, pa.Check.isin([stage.value for stage in Stage])),
        "session_id": pa.Column(pl.String),
        "artifact_sha256": pa.Column(
            pl.String, pa.Check.str_matches(r"^[0-9a-f]{64}$"), nullable=True
        ),
        "window_s": pa.Column(pl.Float64, pa.Check.in_range(0.001, 86_400)),
        "isolation_level": pa.Column(pl.Int64, pa.Check.in_range(0, 3)),
        **{name: pa.Column(pl.Float64, pa.Check.ge(0), nullable=True) for name in SIGNALS[:9]},
        **{name: pa.Column(pl.Boolean, nullable=True) for name in SIGNALS[9:]},
        "action": pa.Column(pl.Int64, pa.Check.in_range(0, ACTION_COUNT - 1), nullable=True),
        "propensity": pa.Column(
            pl.Float64, pa.Check.in_range(0, 1, include_min=False), nullable=True
        ),
        "outcome": pa.Column(
            pl.String, pa.Check.isin([one.value for one in Outcome]), nullable=True
        ),
        "severity": pa.Column(pl.Float64, pa.Check.in_range(0, 1), nullable=True),
        "is_malicious": pa.Column(pl.Boolean, nullable=True),
    },
    unique=list(_keys),
)

STATES = pa.DataFrameSchema(
    {
        **_keys,
        "window": pa.Column(pl.Array(pl.Float64, WINDOW_WIDTH)),
        "state": pa.Column(pl.Array(pl.Float32, FEATURE_COUNT)),
    },
    unique=list(_keys),
)

EXPERIENCES = pa.DataFrameSchema(
    {
        **_keys,
        "session_id": pa.Column(pl.String),
        "state": pa.Column(pl.Array(pl.Float32, FEATURE_COUNT)),
        "rewards": pa.Column(pl.Array(pl.Float64, ACTION_COUNT), nullable=True),
        "terminal": pa.Column(pl.Array(pl.Boolean, ACTION_COUNT)),
        "damage": pa.Column(pl.Float64, pa.Check.ge(0), nullable=True),
        "terminated": pa.Column(pl.Boolean),
        "truncated": pa.Column(pl.Boolean),
        "propensity": pa.Column(
            pl.Float64, pa.Check.in_range(0, 1, include_min=False), nullable=True
        ),
    },
    unique=list(_keys),
)


def violations(schema: pa.DataFrameSchema, frame: pl.DataFrame) -> list[str]:
    """Every rule of a schema that a frame breaks, as sentences; empty where it holds."""
    try:
        schema.validate(frame, lazy=True)
    except pa.errors.SchemaErrors as broken:
        cases = broken.failure_cases
        return sorted({f"{row['column']}: {row['check']}" for row in cases.iter_rows(named=True)})
    return []
