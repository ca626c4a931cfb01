"""Buffered counters and histograms: appended to in this process, flushed to Prometheus in batches.

With several workers each value of `prometheus_client` lives in a mapped file, and a write costs
about a microsecond; a decision would make ten of them. So values are only appended here, by any
thread, and `flush` aggregates them every 100 ms.
"""

import functools
from bisect import bisect_left
from collections import Counter as Bag
from collections import deque
from collections.abc import Callable

from prometheus_client import Counter, Histogram


def _drain(waiting: deque[float]) -> list[float]:
    """The buffered values, removed; what other threads append meanwhile stays."""
    return [waiting.popleft() for _ in range(len(waiting))]


class BufferedCounterSeries:
    """One series of a `BufferedCounter`: `inc` costs an append."""

    __slots__ = ("_child", "_waiting", "inc")

    def __init__(self, child: Counter) -> None:
        self._child = child
        self._waiting: deque[float] = deque()
        self.inc: Callable[[float], None] = self._waiting.append
        """Count an amount."""

    def flush(self) -> None:
        """Add the buffered counts to the counter."""
        if self._waiting:
            self._child.inc(sum(_drain(self._waiting)))


class BufferedCounter:
    """A counter with labels; labels left out at the end are empty."""

    def __init__(self, counter: Counter, labels: int) -> None:
        self._counter = counter
        self._labels = labels
        self._series: list[BufferedCounterSeries] = []
        self.labels: Callable[..., BufferedCounterSeries] = functools.cache(self._add)
        """The series of these labels, cached."""

    def _add(self, *values: str) -> BufferedCounterSeries:
        padded = (*values, *[""] * (self._labels - len(values)))
        series = BufferedCounterSeries(self._counter.labels(*padded))
        self._series.append(series)  # two threads may add the same one, and both are flushed
        return series

    def flush(self) -> None:
        """Add the buffered counts to the counter."""
        for series in list(self._series):
            series.flush()


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
        self._series: list[BufferedHistogram] = []
        self.labels: Callable[[str], BufferedHistogram] = functools.cache(self._add)
        """The series of this label, cached."""

    def _add(self, value: str) -> BufferedHistogram:
        series = BufferedHistogram(self._histogram.labels(value), self._bounds)
        self._series.append(series)  # two threads may add the same one, and both are flushed
        return series

    def flush(self) -> None:
        """Write what was observed to the histograms."""
        for series in list(self._series):
            series.flush()
