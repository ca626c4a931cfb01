"""Run by alembic: upgrades over the connection that `migrate` hands in, inside its transaction."""

from alembic import context

from drl_core.migrations import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    version_table=VERSION_TABLE,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
