"""Settings that change while the service runs: the safe ones are taken, a bad file is refused."""

import asyncio

import structlog

from drl_core.settings import SettingsError, Watcher
from drl_serving.decisions.service import DecisionService
from drl_serving.telemetry.service import TelemetryService

POLL_S = 1.0
_log = structlog.stdlib.get_logger(__name__)


class LiveSettings:
    """Takes `serving.mode` and `serving.max_batch` from changed files; the rest needs a restart."""

    def __init__(
        self, watcher: Watcher, decisions: DecisionService, telemetry: TelemetryService
    ) -> None:
        self._watcher = watcher
        self._decisions = decisions
        self._telemetry = telemetry

    async def watch(self) -> None:
        """Poll the files until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            self.poll()

    def poll(self) -> bool:
        """Take a change, if there is a sound one; True where it was taken."""
        try:
            changed = self._watcher.poll()
        except (SettingsError, OSError) as error:
            _log.error("configuration refused", error=str(error))
            return False
        if changed:
            serving = self._watcher.current.serving
            self._decisions.mode = serving.mode
            self._telemetry.max_records = serving.max_batch
            _log.info("configuration reloaded", mode=serving.mode, max_batch=serving.max_batch)
        return changed
