"""Settings that change while the service runs: the safe ones are taken, a bad file is refused."""

import asyncio
from collections.abc import Callable, Sequence

import structlog

from drl_core.settings import Settings, SettingsError, Watcher

POLL_S = 1.0
_log = structlog.stdlib.get_logger(__name__)


class LiveSettings:
    """Takes changed files of the configuration while requests go on.

    Args:
        watcher: of the files.
        takers: told of each change, with the whole configuration; they take what may change.
    """

    def __init__(self, watcher: Watcher, takers: Sequence[Callable[[Settings], None]]) -> None:
        self._watcher = watcher
        self._takers = takers

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
            for take in self._takers:
                take(self._watcher.current)
            _log.info("configuration reloaded")
        return changed
