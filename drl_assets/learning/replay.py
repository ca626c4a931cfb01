"""The replay buffer: a ring of preallocated columns, first in first out, safe between threads."""

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Columns = dict[str, npt.NDArray[Any]]


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
        self._data: Columns = {
            name: np.zeros((capacity, *shape), dtype=dtype)
            for name, (shape, dtype) in columns.items()
        }
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
            {len(rows[name]) for name in self._data} if rows.keys() >= self._data.keys() else {}
        )
        if len(lengths) != 1:
            raise ValueError(f"columns {sorted(self._data)} of one length expected")
        count = next(iter(lengths))
        kept = min(count, self.capacity)
        with self._lock:
            at = (self._next + np.arange(kept)) % self.capacity
            for name, column in self._data.items():
                column[at] = rows[name][count - kept :]
            self._next = int((self._next + kept) % self.capacity)
            self._size = min(self._size + kept, self.capacity)

    def sample(self, count: int, rng: np.random.Generator, out: Columns | None = None) -> Columns:
        """Rows drawn uniformly with replacement, each column [count, ...].

        Args:
            count: how many.
            rng: draws them.
            out: columns to write into, such as those of an earlier call.

        Raises:
            ValueError: the buffer is empty.
        """
        if out is None:
            out = {
                name: np.empty((count, *column.shape[1:]), column.dtype)
                for name, column in self._data.items()
            }
        with self._lock:
            if not self._size:
                raise ValueError("the replay buffer is empty")
            chosen = rng.integers(self._size, size=count)
            for name, column in self._data.items():
                column.take(chosen, axis=0, out=out[name], mode="clip")  # "raise" would buffer
        return out

    def snapshot(self) -> Columns:
        """All rows, oldest first, as copies."""
        with self._lock:
            start = self._next if self._size == self.capacity else 0
            order = (start + np.arange(self._size)) % self.capacity
            return {name: column[order] for name, column in self._data.items()}
