"""Experience replay: a preallocated ring buffer, first in first out, safe between threads.

A row's columns lie beside each other in memory, so that drawing a batch of random rows is one
gather of whole cache lines; columns are views into the rows.
"""

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Columns = dict[str, npt.NDArray[Any]]
Rows = npt.NDArray[np.void]
"""A structured array [n], a field for each column."""


def view(rows: Rows) -> Columns:
    """The columns [n, ...] of rows, without copying."""
    return {name: rows[name] for name in rows.dtype.names or ()}


class ReplayBuffer:
    """Rows of named columns; the oldest row is evicted when a new one needs its place."""

    def __init__(
        self, columns: Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]], capacity: int = 100_000
    ) -> None:
        """Args:
        columns: name -> (shape of one row's entry, dtype).
        capacity: rows at most.
        """
        if capacity < 1:
            raise ValueError("capacity must be at least 1")
        self.capacity = capacity
        fields = [(name, dtype, shape) for name, (shape, dtype) in columns.items()]
        self._ring: Rows = np.zeros(capacity, np.dtype(fields, align=True))
        self._columns = view(self._ring)
        self._next = 0
        self._size = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._size

    def add(self, rows: Mapping[str, npt.NDArray[Any]]) -> None:
        """Append rows, each column [n, ...]; of more rows than fit, the last ones stay.

        Raises:
            ValueError: columns are missing or of different lengths.
        """
        lengths = (
            {len(rows[name]) for name in self._columns}
            if rows.keys() >= self._columns.keys()
            else {}
        )
        if len(lengths) != 1:
            raise ValueError(f"columns {sorted(self._columns)} of one length expected")
        count = next(iter(lengths))
        kept = min(count, self.capacity)
        with self._lock:
            at = (self._next + np.arange(kept)) % self.capacity
            for name, column in self._columns.items():
                column[at] = rows[name][count - kept :]
            self._next = int((self._next + kept) % self.capacity)
            self._size = min(self._size + kept, self.capacity)

    def allocate(self, count: int) -> Rows:
        """Rows for `sample` to write into, reused from call to call."""
        return np.zeros(count, self._ring.dtype)

    def sample(self, count: int, rng: np.random.Generator, into: Rows | None = None) -> Columns:
        """Rows drawn uniformly with replacement, each column [count, ...].

        Args:
            count: how many.
            rng: draws them.
            into: from `allocate`; the columns are views of it.

        Raises:
            ValueError: the buffer is empty.
        """
        into = self.allocate(count) if into is None else into
        with self._lock:
            if not self._size:
                raise ValueError("the replay buffer is empty")
            # twice as fast as rng.integers; "clip" below guards against rounding up
            chosen = (rng.random(count) * self._size).astype(np.int64)
            self._ring.take(chosen, axis=0, out=into, mode="clip")  # "raise" would copy once more
        return view(into)

    def snapshot(self) -> Columns:
        """All rows, oldest first, as copies."""
        with self._lock:
            start = self._next if self._size == self.capacity else 0
            return {
                name: np.concatenate((column[start : self._size], column[:start]))
                for name, column in self._columns.items()
            }
