"""Schema migrations (alembic): `migrate` brings a database to the newest revision.

The tables share a database with Dagster's storage, which has an `alembic_version` of its own; ours
is `drl_schema_version`. alembic and SQLAlchemy are imported here only.
"""

from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from psycopg.errors import InsufficientPrivilege, UndefinedFile

from drl_core.storage.database import connect

VERSION_TABLE = "drl_schema_version"
_MIGRATION_LOCK = 0x64726C  # id of the advisory lock


class MigrationError(RuntimeError):
    """The schema cannot be brought up to date; the message says what the database lacks."""


def migrate(
    url: str,
    wait_s: float = 30.0,
    waiting: Callable[[str], None] | None = None,
    to: str = "head",
) -> None:
    """Bring the schema to a revision, the newest by default; several processes may do so at once.

    Args:
        url: `postgresql://...` of PostgreSQL 15 or later with pgvector.
        wait_s: seconds to wait for the database.
        waiting: called once, with the reason, when the database is away at first.
        to: `head`, or an older revision to downgrade to; data it has no column for is lost.

    Raises:
        DatabaseUnavailable: no connection in that time.
        MigrationError: pgvector is missing, or the user lacks a privilege.
    """
    with connect(url, wait_s, waiting) as first:
        if first.info.server_version < 150000:
            raise MigrationError("PostgreSQL 15 or later is needed")
    engine = sa.create_engine(
        "postgresql+psycopg://", creator=lambda: connect(url), poolclass=sa.NullPool
    )
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    try:
        with engine.begin() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            config.attributes["connection"] = connection
            (command.upgrade if to == "head" else command.downgrade)(config, to)
    except sa.exc.DBAPIError as error:
        if isinstance(error.orig, UndefinedFile):
            raise MigrationError(f"the server has no pgvector, install it: {error.orig}") from None
        if isinstance(error.orig, InsufficientPrivilege):
            raise MigrationError(f"the database user lacks a right: {error.orig}") from None
        raise
