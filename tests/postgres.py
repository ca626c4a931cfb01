"""PostgreSQL for tests: the embedded server without fsync, and databases of a test's own on it."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from drl_cli.local.embedded_postgres import EmbeddedPostgres


class FastPostgres(EmbeddedPostgres):
    """The embedded server, trading crash safety for speed."""

    initdb_options = (*EmbeddedPostgres.initdb_options, "--no-sync")
    server_options = (
        *EmbeddedPostgres.server_options,
        *("-cfsync=off", "-csynchronous_commit=off"),
    )


@contextmanager
def temporary_database(url: str, name: str, template: str = "template1") -> Iterator[str]:
    """A database of its own beside the one in `url`, dropped afterwards.

    Args:
        url: of a database on the server, with the right to create others.
        name: of the new database.
        template: a database to copy; nobody may be connected to it.
    """
    make = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(make.format(sql.Identifier(name), sql.Identifier(template)))
        try:
            yield f"{url.rpartition('/')[0]}/{name}"
        finally:
            connection.execute(drop.format(sql.Identifier(name)))
