"""Storage of a developer's Dagster instance: the project's own database, without any variable.

The `dagster.yaml` at the repository's root names it, so that `dagster dev` and every other command
of Dagster works in a plain checkout and sees the same runs and partitions as `drl up` does. A
deployment has the instance file of `deploy/`, with plain PostgreSQL storage.
"""

from typing import Any, Self

from dagster_postgres import DagsterPostgresStorage

from drl_core import settings
from drl_core.embedded_database import database_url
from drl_core.storage.database import sqlalchemy_url


class InstanceStorage(DagsterPostgresStorage):
    """Dagster's PostgreSQL storage in `DRL_DATABASE_URL`, or in the embedded server."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Any) -> Self:
        return cls(sqlalchemy_url(database_url(settings.load())), inst_data=inst_data)
