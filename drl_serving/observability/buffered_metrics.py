"""Buffered counters and histograms: appended to in this process, flushed to Prometheus in batches.

With several workers each value of `prometheus_client` lives in a mapped file, and a write costs
about a microsecond; a decision would make ten of them. So values are only appended here, by any
thread, and `flush` aggregates them every 100 ms.
"""

from bisect import bisect_left
from collections import Counter as Bag
from collections import deque
from collections.abc import Callable

from prometheus_client import Counter, Histogram


def _drain(waiting: deque[float]) -> list[float]:
    """The buffered values, removed; what other threads append meanwhile stays."""
    return [waiting.popleft() for _ in range(len(waiting))]


class BufferedCounterSeries:
    """One series of a `BufferedCounter`."""

    __slots__ = ("_child", "_waiting")

    def __init__(self, child: Counter) -> None:
        self._child = child
        self._waiting: deque[float] = deque()

    def inc(self, amount: float = 1) -> None:
        """Count."""
        self._waiting.append(amount)

    def flush(self) -> None:
        """Add the buffered counts to the counter."""
        if self._waiting:
            self._child.inc(sum(_drain(self._waiting)))


class BufferedCounter:
    """A counter with labels; labels left out at the end are empty."""

    def __init__(self, counter: Counter, labels: int) -> None:
        self._counter = counter
        self._labels = labels
        self._children: dict[tuple[str, ...], BufferedCounterSeries] = {}

    def labels(self, *values: str) -> BufferedCounterSeries:
        """The series of these labels."""
        child = self._children.get(values)
        if child is None:
            padded = (*values, *[""] * (self._labels - len(values)))
            child = self._children.setdefault(
                values, BufferedCounterSeries(self._counter.labels(*padded))
            )
        return child

    def flush(self) -> None:
        """Add the buffered counts to the counter."""
        for child in list(self._children.values()):
            child.flush()


class BufferedHistogram:
    """A histogram's series: `observe` costs an append."""

    def __init__(self, histogram: Histogram, bounds: tuple[float, ...]) -> None:
        self._histogram = histogram
        self._bounds = bounds
        self._waiting: deque[float] = deque()
        self.observe: Callable[[float], None] = self._waiting.append
        """Take one value, in the histogram's unit."""

    def flush(self) -> None:
        """Write what was observed to the histogram: one write for each bucket that changed.

        `prometheus_client` has no call for many observations at once, hence its private members.
        """
        if not self._waiting:
            return
        values = _drain(self._waiting)
        for bucket, count in Bag(bisect_left(self._bounds, value) for value in values).items():
            self._histogram._buckets[bucket].inc(count)
        self._histogram._sum.inc(sum(values))


class BufferedHistogramFamily:
    """A histogram with one label."""

    def __init__(self, histogram: Histogram, bounds: tuple[float, ...]) -> None:
        self._histogram = histogram
        self._bounds = bounds
        self._children: dict[str, BufferedHistogram] = {}

    def labels(self, value: str) -> BufferedHistogram:
        """The series of this label."""
        child = self._children.get(value)
        if child is None:
            made = BufferedHistogram(self._histogram.labels(value), self._bounds)
            child = self._children.setdefault(value, made)
        return child

    def flush(self) -> None:
        """Write what was observed to the histograms."""
        for child in list(self._children.values()):
            child.flush()
