"""The way to PostgreSQL: one bounded, retrying connect, and one error for a database that is away.

A URL goes in; a connection of psycopg 3, or `DatabaseUnavailable`, comes out.
"""

import time
from collections.abc import Callable
from typing import Any

import psycopg

CONNECT_WAIT_S = 10.0
"""How long a connection is tried before the database is called unavailable."""

_LONGEST_PAUSE_S = 2.0


class DatabaseUnavailable(RuntimeError):  # noqa: N818
    """The database gives no answer within the bounded wait."""


def connect(
    url: str,
    wait_s: float = CONNECT_WAIT_S,
    waiting: Callable[[str], None] | None = None,
) -> psycopg.Connection[tuple[Any, ...]]:
    """Connect, trying again with a growing pause while the server is away or starting.

    Args:
        url: `postgresql://...`.
        wait_s: seconds in all.
        waiting: told the reason once, when the first attempt has failed.

    Raises:
        DatabaseUnavailable: no connection in that time, or a refusal that waiting does not mend.
    """
    deadline = time.monotonic() + wait_s
    pause = 0.1
    while True:
        try:
            return psycopg.connect(url, connect_timeout=max(2, min(10, int(wait_s))))
        except psycopg.OperationalError as error:
            reason = str(error).strip()
            refused = "authentication failed" in reason or " does not exist" in reason
            if refused or time.monotonic() + pause > deadline:
                raise DatabaseUnavailable(f"no connection in {wait_s:g} s: {reason}") from None
        if waiting is not None:
            waiting(reason)
            waiting = None
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
