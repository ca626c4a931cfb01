"""Attack patterns with their vector index, and the progress of episodes through the asset graph."""

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import Vector
from sqlalchemy.dialects import postgresql as pg

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    op.create_table(
        "attack_patterns",
        sa.Column("sandbox_id", sa.Text, primary_key=True),
        sa.Column("episode_id", sa.Text, primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True),
        sa.Column("model_version", sa.Text, primary_key=True),
        sa.Column("features", Vector(30), nullable=False),
        sa.Column("action", sa.SmallInteger, nullable=False),
        sa.Column("reward", sa.Double, nullable=False),
        sa.Column("attack_type", sa.Text, nullable=False),
        sa.Column("confidence", sa.Double, nullable=False),
        sa.Column("artifact_sha256", sa.Text),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("metadata", pg.JSONB, nullable=False, server_default="{}"),
        sa.CheckConstraint("action BETWEEN 0 AND 4", name="attack_patterns_action"),
        sa.CheckConstraint("confidence BETWEEN 0 AND 1", name="attack_patterns_confidence"),
    )
    op.create_index("attack_patterns_by_time", "attack_patterns", ["time"])
    op.create_index("attack_patterns_by_type", "attack_patterns", ["attack_type", "time"])
    op.create_index(
        "attack_patterns_by_features",
        "attack_patterns",
        ["features"],
        postgresql_using="hnsw",
        postgresql_ops={"features": "vector_l2_ops"},
        # half of the defaults: an insert costs a third; the search looks at more candidates instead
        postgresql_with={"m": 8, "ef_construction": 40},
    )
    key = sa.Text(collation="C")  # so that "earlier batch" is the order of the key's bytes
    op.create_table(
        "episode_progress",
        sa.Column("sandbox_id", sa.Text, primary_key=True),
        sa.Column("episode_id", sa.Text, primary_key=True),
        sa.Column("batch_key", key, primary_key=True),
        sa.Column("steps", pg.INT8MULTIRANGE, nullable=False),
        sa.Column("carry", pg.ARRAY(sa.Double), nullable=False),
        sa.Column("first_step", sa.BigInteger, sa.Computed("lower(steps)", persisted=True)),
        sa.Column("last_step", sa.BigInteger, sa.Computed("upper(steps) - 1", persisted=True)),
        sa.CheckConstraint("NOT isempty(steps)", name="episode_progress_steps"),
    )
    op.create_index("episode_progress_by_batch", "episode_progress", ["batch_key"])


def downgrade() -> None:
    """Take this revision back; the extension stays, others may use it."""
    op.drop_table("episode_progress")
    op.drop_table("attack_patterns")
