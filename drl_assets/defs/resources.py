"""The Dagster resource `project`: configuration, landing zone, tables, stores and database.

One resource, since these are one folder, `settings.home`; `DRL_HOME`, `DRL_DATABASE_URL` and the
other variables of `drl_core.settings` say where it is.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg

from drl_assets.tables.store import Tables
from drl_core import settings as configuration
from drl_core.release.manifest import Manifest
from drl_core.release.signing_keys import trusted_keys
from drl_core.release.store import ModelStore, Release
from drl_core.settings import Settings
from drl_core.storage.outbox import Outbox
from drl_core.telemetry.landing import LandingZone


class Project(dg.ConfigurableResource[Any]):
    """The project's folders and database, found by its configuration.

    Dagster makes a resource of its own for each run and each tick of a sensor.
    """

    @cached_property
    def settings(self) -> Settings:
        """The configuration, read once in a run or tick."""
        return configuration.load()

    @property
    def landing(self) -> LandingZone:
        return LandingZone(self.settings.landing_path)

    @property
    def tables(self) -> Tables:
        return Tables(self.settings.tables_path)

    @property
    def models(self) -> ModelStore:
        return ModelStore(self.settings.models_path)

    @cached_property
    def database_url(self) -> str:
        """The configured database, else the embedded one, started where it does not run.

        Raises:
            dg.Failure: it cannot be started; the message says what to do.
        """
        from drl_core import embedded_database
        from drl_core.storage.database import DatabaseUnavailable

        try:
            return embedded_database.database_url(self.settings)
        except DatabaseUnavailable as error:
            raise dg.Failure(str(error)) from error

    @property
    def outbox(self) -> Outbox:
        """What waits for the database; the service drains it."""
        return Outbox(self.settings.state_path / "outbox.sqlite")

    def checkpoint_path(self, version: str) -> Path:
        return self.settings.checkpoints_path / f"{version}.pt"

    def onnx_path(self, version: str) -> Path:
        return self.settings.checkpoints_path / f"{version}.onnx"

    def evaluation_path(self, version: str) -> Path:
        return self.settings.checkpoints_path / f"{version}.evaluation.json"

    def gates_path(self, version: str) -> Path:
        """A folder with a file for each gate that a model came to."""
        return self.settings.checkpoints_path / f"{version}.gates"

    @property
    def released(self) -> Release | None:
        """The verified release, None before the first one."""
        try:
            return self.models.load(trusted_keys(self.settings.keys_path))
        except FileNotFoundError:
            return None

    @property
    def champion(self) -> Manifest | None:
        """What is known of the released model, None before the first release."""
        released = self.released
        return released.manifest if released else None


def latest_version(instance: dg.DagsterInstance, asset: str = "trained_checkpoint") -> str:
    """The model version that an asset was last materialised with.

    Raises:
        dg.Failure: it has never been materialised.
    """
    version = find_version(instance, asset)
    if version is None:
        raise dg.Failure(f"{asset} has not been materialised yet: materialise it first")
    return version


def find_version(instance: dg.DagsterInstance, asset: str) -> str | None:
    """The same, None where it has never been materialised."""
    event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    materialization = event.asset_materialization if event else None
    return None if materialization is None else str(materialization.metadata["version"].value)


@dg.definitions
def resources() -> dg.Definitions:
    """The resources of the code location."""
    return dg.Definitions(resources={"project": Project()})
