"""The decision log."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.create_table(
        "decisions",
        sa.Column("decision_id", pg.UUID, primary_key=True),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sandbox_id", sa.Text, nullable=False),
        sa.Column("episode_id", sa.Text, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("action", sa.SmallInteger, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("principal", sa.Text, nullable=False),
        sa.Column("record", pg.JSONB, nullable=False),
    )
    op.create_index("decisions_by_time", "decisions", ["time", "decision_id"])
    op.create_index("decisions_by_episode", "decisions", ["sandbox_id", "episode_id", "step"])


def downgrade() -> None:
    """Take this revision back."""
    op.drop_table("decisions")
