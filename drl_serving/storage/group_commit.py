"""Group commit: many callers on the event loop share one durable write in a thread.

Items come in through `submit`, which returns once a call of `commit` that held them has returned.
While one group is being written the next one gathers, so that under load an fsync is paid by
hundreds of callers. What waits is bounded (back-pressure): above it callers get `BufferFull`.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

from drl_serving.http.problems import Problem

T = TypeVar("T")

_SMOOTHING = 0.2


class BufferFull(Problem):
    """Back-pressure, 503: as many items wait as may; none of the caller's was taken.

    Args:
        waiting: items that wait.
        retry_after_s: seconds in which they should be written.
    """

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(
            503,
            "busy",
            f"{waiting} items wait to be written; try again in {retry_after_s} s",
            "Keep what was sent, wait for the seconds of Retry-After, then send it again.",
            retry_after_s=retry_after_s,
        )
        self.waiting = waiting


class _Submission(NamedTuple, Generic[T]):
    items: Sequence[T]
    written: asyncio.Future[None]


class GroupCommit(Generic[T]):
    """Batches submissions to one durable writer, for one event loop.

    Args:
        commit: writes a list durably or raises; called in one thread of its own, one at a time,
            items in the order of their submission.
        capacity: items that may wait, those being written included. One submission alone may be
            longer, so that none is refused for ever.
        max_group: items after which a group is closed; a submission is never split.
        linger_s: how long a group that is not full waits for company; 0 is right where `commit`
            takes longer than callers take to arrive.
        name: of the thread.
    """

    def __init__(
        self,
        commit: Callable[[list[T]], None],
        *,
        capacity: int,
        max_group: int,
        linger_s: float = 0.0,
        name: str = "group-commit",
    ) -> None:
        self._commit = commit
        self._capacity = capacity
        self._max_group = max_group
        self._linger_s = linger_s
        self._thread = ThreadPoolExecutor(1, name)
        self._waiting: deque[_Submission[T]] = deque()
        self._depth = 0
        self._runner: asyncio.Task[None] | None = None
        self._closed = False
        self._seconds_an_item = 0.0

    @property
    def depth(self) -> int:
        """Items that are not written yet."""
        return self._depth

    async def submit(self, items: Sequence[T]) -> None:
        """Return when all of `items` are durable.

        A caller that is cancelled changes nothing for the others; its items may be written or not.

        Raises:
            BufferFull: too many wait; nothing was taken.
            Exception: whatever `commit` raised on the group that held the items.
        """
        if self._closed:
            raise RuntimeError("the writer is closed")
        if not items:
            return
        if self._depth and self._depth + len(items) > self._capacity:
            raise BufferFull(self._depth, max(1, math.ceil(self._depth * self._seconds_an_item)))
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Submission(items, written))
        self._depth += len(items)
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        await written

    async def close(self) -> None:
        """Write what waits, then end the thread; later submissions are refused."""
        self._closed = True
        if self._runner is not None:
            await self._runner
        self._thread.shutdown()

    async def _run(self) -> None:
        """Write groups until nothing waits."""
        try:
            while self._waiting:
                if self._linger_s and self._depth < self._max_group:
                    await asyncio.sleep(self._linger_s)
                await self._write(self._take())
        finally:
            self._runner = None
            while self._waiting:  # only where the event loop ends without `close`
                abandoned = self._waiting.popleft()
                self._depth -= len(abandoned.items)
                abandoned.written.cancel()

    def _take(self) -> list[_Submission[T]]:
        """The next group; what its caller has given up is left out."""
        group: list[_Submission[T]] = []
        size = 0
        while self._waiting and (not size or size + len(self._waiting[0].items) <= self._max_group):
            one = self._waiting.popleft()
            if one.written.cancelled():
                self._depth -= len(one.items)
            else:
                group.append(one)
                size += len(one.items)
        return group

    async def _write(self, group: list[_Submission[T]]) -> None:
        if not group:
            return
        loop = asyncio.get_running_loop()
        items = [item for one in group for item in one.items]
        started = loop.time()
        error: Exception | None = None
        try:
            await loop.run_in_executor(self._thread, self._commit, items)
        except Exception as raised:  # the callers, who wait, get it
            error = raised
        except asyncio.CancelledError:
            for one in group:
                one.written.cancel()
            raise
        finally:
            self._depth -= len(items)
        took = (loop.time() - started) / len(items)
        self._seconds_an_item += _SMOOTHING * (took - self._seconds_an_item)
        for one in group:
            if one.written.done():
                continue
            if error is None:
                one.written.set_result(None)
            else:
                one.written.set_exception(error)
