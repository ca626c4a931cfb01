"""Load shedding: a bounded number of requests in flight, 503 with Retry-After for those above it.

A worker answers in turns of its event loop: whatever it has read by the begin of a turn is in
flight together, so a bound on that number bounds the time that an accepted request takes. A refusal
costs half as much as a decision, so the gateway sends it after a delay: callers that retry at once
would otherwise take the time of the requests that are accepted.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType

from drl_serving.http.problems import Problem

RETRY_AFTER_S = 1
REFUSAL_DELAY_S = 0.25


class Overloaded(Problem):
    """503: the in-flight limit is reached."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "overloaded",
            "more requests came in than can be answered in time",
            "Wait for the seconds of Retry-After, then send the request again.",
            retry_after_s=RETRY_AFTER_S,
        )


class LoadShedder:
    """Admission control by an in-flight limit: a context manager around the work of one request.

    Args:
        refused: counts a refused request, such as a counter's `inc`.
    """

    def __init__(self, refused: Callable[[float], None]) -> None:
        self.max_in_flight = 1
        """Requests at once; may be changed while running."""
        self.in_flight = 0
        self._refused = refused

    def check(self) -> None:
        """Refuse a request while the limit is reached.

        Raises:
            Overloaded: it is.
        """
        if self.in_flight >= self.max_in_flight:
            self._refused(1)
            raise Overloaded

    def __enter__(self) -> None:
        """Count a request in.

        Raises:
            Overloaded: as `check`.
        """
        self.check()
        self.in_flight += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Count it out."""
        self.in_flight -= 1


class LoopTurn:
    """Queueing delay that can be seen: the time since the event loop's present turn began."""

    def __init__(self) -> None:
        self._began: float | None = None

    def elapsed(self, now: float) -> float:
        """Seconds from the first call in this turn to `now`, of one clock."""
        if self._began is None:
            self._began = now
            asyncio.get_running_loop().call_soon(self._end)
        return now - self._began

    def _end(self) -> None:
        self._began = None
