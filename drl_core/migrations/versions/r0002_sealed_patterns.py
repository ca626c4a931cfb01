"""What is personal of a pattern is sealed; when it was learned tells the newer of two.

Metadata that is stored in clear stays readable until the drainer, or `drl patterns rotate-key`, has
sealed it: the keys are not in the database, so this revision cannot.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.add_column("attack_patterns", sa.Column("key_id", sa.Text))
    op.add_column("attack_patterns", sa.Column("sealed", sa.LargeBinary))
    op.add_column(
        "attack_patterns",
        sa.Column(
            "learned_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.text("'epoch'"),
        ),
    )
    op.alter_column("attack_patterns", "metadata", nullable=True, server_default=None)
    op.execute("UPDATE attack_patterns SET metadata = NULL WHERE metadata = '{}'")
    op.create_check_constraint(
        "attack_patterns_sealed", "attack_patterns", "(sealed IS NULL) = (key_id IS NULL)"
    )
    # room on each page, so that sealing under a new key leaves the indexes alone
    op.execute("ALTER TABLE attack_patterns SET (fillfactor = 70)")


def downgrade() -> None:
    """Take this revision back; what is sealed is lost with its column."""
    op.execute("ALTER TABLE attack_patterns RESET (fillfactor)")
    op.execute("UPDATE attack_patterns SET metadata = '{}' WHERE metadata IS NULL")
    op.alter_column("attack_patterns", "metadata", nullable=False, server_default="{}")
    for name in ("learned_at", "sealed", "key_id"):
        op.drop_column("attack_patterns", name)
