"""Counters and histograms that gather in this process and reach Prometheus' files in groups.

With several workers each value of `prometheus_client` lives in a mapped file, and a write costs
about a microsecond; a decision would make ten of them. So what happens is only appended here, by
any thread, and `flush` adds it up every 100 ms.
"""

from bisect import bisect_left
from collections import Counter as Bag
from collections import deque
from collections.abc import Callable

from prometheus_client import Counter, Histogram


def _taken(waiting: deque[float]) -> list[float]:
    """What waits, taken off; what other threads append meanwhile waits on."""
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
        """Hand over what was counted."""
        if self._waiting:
            self._child.inc(sum(_taken(self._waiting)))


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
        """Hand over what was counted."""
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
        """Hand over what was observed: one write for each bucket that anything fell into.

        `prometheus_client` has no call for many observations at once, hence its private members.
        """
        if not self._waiting:
            return
        values = _taken(self._waiting)
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
        """Hand over what was observed."""
        for child in list(self._children.values()):
            child.flush()
