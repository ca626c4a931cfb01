"""Hot reload of models: the champion, the last ones, a challenger, and others on demand.

`ModelHolder` polls the model store's pointer by `stat` in every worker. A release comes in as
signed files, is verified in a thread and swapped in as one reference. Whatever is wrong with it,
the old model keeps serving and a metric counts the reason.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

from drl_core.release.errors import BundleError
from drl_core.release.signing_keys import trusted_keys
from drl_core.release.store import ModelStore
from drl_core.settings import Settings
from drl_serving.models.onnx_model import Models, ServedModel
from drl_serving.models.sequence_guard import HighestSequence
from drl_serving.observability.metrics import Metrics

RETRY_S = 1.0
"""Between attempts at a release that cannot be read."""
ON_DEMAND = 2
"""Models beside the last releases and the challenger that stay loaded once asked for."""
_MISSES = 256
_log = structlog.get_logger("drl_serving.models")

_Stamp = tuple[object, ...]
T = TypeVar("T")


class ModelHolder:
    """Holds the served models. The sequence number of the current one never goes back.

    Args:
        settings: folders, `serving.reload_interval_s`, `keep_models` and `challenger`.
        metrics: counts reloads by result.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.current: ServedModel | None = None
        """The champion."""
        self.challenger: ServedModel | None = None
        """The model to compare with; None where there is none, or where it is the served one."""
        self.serving: Models | None = None
        """Both of them. Read it once per batch: version and Q-values then always match."""
        self.store = ModelStore(settings.models_path)
        self.keys_path = settings.keys_path
        self._highest = HighestSequence(settings.state_path / "highest_release.json")
        self._interval_s = settings.serving.reload_interval_s
        self._keep = settings.serving.keep_models
        self._metrics = metrics
        self._recent: dict[str, ServedModel] = {}  # the last in use is the last
        self._on_demand: dict[str, ServedModel] = {}
        self._misses: dict[str, _Stamp] = {}
        self._wanted = settings.serving.challenger
        self._challenger: ServedModel | None = None
        self._trusted: frozenset[str] = frozenset()
        self._seen: _Stamp | None = None
        self._seen_challenger: _Stamp | None = None
        self._unreadable = False
        self._loading = asyncio.Lock()
        self._polling = asyncio.Lock()
        # one thread for all loading: each thread that ever opens a graph keeps memory of its own
        self._thread = ThreadPoolExecutor(1, "models")

    @property
    def distrusted(self) -> bool:
        """Whether the served model was signed by a key that is no longer trusted."""
        return self.current is not None and not self._trusts(self.current)

    def set_challenger(self, version: str | None) -> None:
        """Name the challenger; the next poll loads another one."""
        if version == self._wanted:
            return
        self._wanted = version
        self._seen_challenger = None
        if version is None:
            self._challenger = None
            self._refresh()

    def loaded(self) -> list[ServedModel]:
        """Models that are ready to run, the newest release first."""
        held = [*reversed(self._recent.values()), self._challenger, *self._on_demand.values()]
        return [model for model in held if model is not None and self._trusts(model)]

    async def version(self, version: str) -> ServedModel:
        """A model by its version; loaded from the store where it is not at hand.

        Raises:
            BundleError: `unknown_version`, or why it must not be served.
            OSError: the store cannot be read.
        """
        if (model := self._held(version)) is not None:
            return model
        async with self._loading:  # one at a time: asking for many costs their callers, not others
            if (model := self._held(version)) is not None:
                return model
            stamp = self._store_stamp()
            if self._misses.get(version) == stamp:
                raise BundleError("unknown_version", f"the store holds no release of {version!r}")
            try:
                model = await self._in_thread(lambda: self._find(version))
            except BundleError as error:
                if error.reason == "unknown_version":
                    if len(self._misses) >= _MISSES:
                        self._misses.clear()
                    self._misses[version] = stamp
                raise
            self._on_demand[version] = model
            _keep_last(self._on_demand, ON_DEMAND)
            return model

    async def watch(self) -> None:
        """Poll for new releases until cancelled."""
        while True:
            await asyncio.sleep(RETRY_S if self._unreadable else self._interval_s)
            await self.poll()

    async def poll(self) -> bool:
        """Take a new release, if there is a sound one; True where the model was swapped."""
        async with self._polling:  # who returns has the newest release, whoever loaded it
            swapped = await self._poll_current()
            self._refresh()  # after a refusal as well: keys may no longer be trusted
            await self._poll_challenger()
            self._refresh()
        return swapped

    async def _poll_current(self) -> bool:
        stamp = self._stamp()
        if stamp is None or stamp == self._seen:
            return False
        self._seen, self._unreadable = stamp, False
        try:
            model = await self._in_thread(self._load)
        except BundleError as error:
            self._refuse(error.reason, error)
        except OSError as error:
            self._seen, self._unreadable = None, True  # unlike a refusal, this may heal by itself
            self._refuse("unreadable", error)
        except Exception as error:  # the task's boundary: whatever comes, the old model serves on
            self._refuse("unexpected", error)
        else:
            return self._swap(model)
        return False

    async def _poll_challenger(self) -> None:
        if self._wanted is None:
            return
        stamp = (self._wanted, *self._store_stamp())
        if stamp == self._seen_challenger:
            return
        self._seen_challenger, wanted = stamp, self._wanted
        try:
            model = self._held(wanted) or await self._in_thread(lambda: self._find(wanted))
        except Exception as error:  # the task's boundary: decisions need no challenger
            reason = error.reason if isinstance(error, BundleError) else "unreadable"
            self._metrics.reloads.labels(f"challenger_{reason}").inc(1)
            _log.error("challenger refused", version=wanted, reason=reason, error=str(error))
            return
        if wanted == self._wanted:
            self._challenger = model
            _log.info("challenger loaded", version=wanted)

    def _refresh(self) -> None:
        """Put together what serves now."""
        current, held = self.current, self._challenger
        if current is None:
            return
        version = current.manifest.model_version
        is_other = held is not None and held.manifest.model_version != version
        self.challenger = held if held is not None and is_other and self._trusts(held) else None
        self.serving = Models(current, self.challenger)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _swap(self, model: ServedModel | None) -> bool:
        if model is None:
            return False
        manifest = model.manifest
        self.current = model
        self._recent.pop(manifest.model_version, None)
        self._recent[manifest.model_version] = model
        _keep_last(self._recent, self._keep)
        self._metrics.model_loaded(manifest.model_version, manifest.sha256, manifest.sequence)
        _log.info("model loaded", version=manifest.model_version, sequence=manifest.sequence)
        return True

    def _refuse(self, reason: str, error: Exception) -> None:
        serving = self.current.manifest.model_version if self.current else None
        self._metrics.reloads.labels(reason).inc(1)
        _log.error("release refused", reason=reason, error=str(error), still_serving=serving)

    def _load(self) -> ServedModel | None:
        served = self.current.manifest if self.current else None
        highest = self._highest.read()  # before the pointer, which may only be newer then
        trusted = trusted_keys(self.keys_path)
        self._trusted = frozenset(trusted)
        floor = max(served.sequence if served else 0, highest.sequence)
        release = self.store.load(trusted, after_sequence=floor)
        if served and release.manifest.sequence == served.sequence:
            if release.manifest != served:
                raise BundleError("sequence", f"two releases have number {served.sequence}")
            return None
        self._highest.require_newer(release.manifest, highest)
        model = ServedModel(release)
        self._highest.raise_to(release.manifest)
        return model

    def _find(self, version: str) -> ServedModel:
        return ServedModel(self.store.find(version, trusted_keys(self.keys_path)))

    def _held(self, version: str) -> ServedModel | None:
        found = self._recent.get(version) or self._on_demand.get(version)
        if found is None and (other := self._challenger) is not None:
            found = other if other.manifest.model_version == version else None
        return found if found is not None and self._trusts(found) else None

    def _trusts(self, model: ServedModel) -> bool:
        return model.key_id in self._trusted

    def _stamp(self) -> _Stamp | None:
        """Changes with the pointer and with the trusted keys; None before the first release."""
        try:
            pointer = self.store.current_path.stat()
        except FileNotFoundError:
            return None
        return (pointer.st_ino, pointer.st_mtime_ns, pointer.st_size, self._changed("trusted"))

    def _store_stamp(self) -> _Stamp:
        """Changes with the releases and with the trusted keys."""
        releases = self.store.root / "releases"
        changed = releases.stat().st_mtime_ns if releases.exists() else 0
        return (changed, self._changed("trusted"))

    def _changed(self, name: str) -> int:
        folder = self.keys_path / name
        return folder.stat().st_mtime_ns if folder.exists() else 0


def _keep_last(models: dict[str, ServedModel], count: int) -> None:
    for version in list(models)[:-count]:
        del models[version]
