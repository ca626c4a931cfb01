"""What waits for the database, told to the metrics once a second."""

from drl_serving.metrics import Metrics
from drl_serving.storage import Storage


class OutboxTold:
    """Sets the gauges of the outbox, and counts what its drainer did since it was told last."""

    def __init__(self, metrics: Metrics, storage: Storage) -> None:
        self._metrics = metrics
        self._storage = storage
        self._drained = 0
        self._set_aside = 0

    def tell(self) -> None:
        """Read and tell; it reads a file, so call it in a thread."""
        metrics, drainer = self._metrics, self._storage.drainer
        metrics.outbox_depth.set(self._storage.outbox.depth())
        metrics.outbox_oldest_age.set(self._storage.outbox.oldest_age_s())
        if drainer is not None:
            drained, set_aside = drainer.drained, drainer.set_aside
            metrics.outbox_drained.inc(drained - self._drained)
            metrics.outbox_set_aside.inc(set_aside - self._set_aside)
            self._drained, self._set_aside = drained, set_aside
