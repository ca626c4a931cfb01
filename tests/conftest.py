"""Fixtures for every test: a real PostgreSQL with a database of its own for each module."""

import re
from collections.abc import Iterator

import pytest

from drl_core.migrations import migrate
from tests.postgres import FastPostgres, temporary_database


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server of this test session, its database migrated; not for writing into."""
    with FastPostgres(tmp_path_factory.mktemp("postgres")) as url:
        migrate(url)
        yield url


@pytest.fixture(scope="module")
def postgres_url(postgres_server: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of a fresh, migrated database for one test module."""
    name = re.sub(r"\W+", "_", request.module.__name__).lower()[-50:]
    with temporary_database(postgres_server, f"test_{name}", template="drl") as url:
        yield url
