"""Configuration reload while the service runs: a poller that hands changed settings to the service.

Reloadable fields are taken; a changed field that is not reloadable is announced as needing a
restart, and a file that cannot be used is refused. In both cases the service goes on as before.
"""

import asyncio
from collections.abc import Callable

import structlog

from drl_core.settings import Settings, SettingsError
from drl_serving.reload import Reload, Watcher, reload

POLL_S = 1.0
_log = structlog.stdlib.get_logger(__name__)


class LiveSettings:
    """Follows the configuration's files.

    Args:
        settings: in force at the start.
        watcher: of the files.
        take: called with each change that has an effect, now or after a restart.
    """

    def __init__(
        self, settings: Settings, watcher: Watcher, take: Callable[[Reload], None]
    ) -> None:
        self._in_force = settings
        self._watcher = watcher
        self._take = take

    async def poll_periodically(self) -> None:
        """Poll the files until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            self.poll()

    def poll(self) -> bool:
        """Take a change, if there is a usable one; True where a field was taken."""
        try:
            if not self._watcher.poll():
                return False
        except (SettingsError, OSError) as error:
            _log.error("configuration refused", error=str(error))
            return False
        change = reload(self._in_force, self._watcher.current)
        self._in_force = change.settings
        if change.taken:
            _log.info("configuration reloaded", fields=change.taken)
        if change.needs_restart:
            _log.warning(
                "configuration changed, restart the service to take these fields",
                fields=change.needs_restart,
            )
        if change.taken or change.needs_restart:
            self._take(change)
        return bool(change.taken)
