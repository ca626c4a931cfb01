"""Rate limits by token buckets: one per caller, shared by the workers; one per address for guesses.

A bucket holds up to `burst` tokens and gains `rate` a second; a request takes one. So in any t
seconds at most `rate * t + burst` requests are admitted, whichever workers answer them.
"""

import math
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import lmdb

_BUCKET = struct.Struct("<dd")


def refill(tokens: float, since: float, now: float, rate: float, burst: float) -> float:
    """Tokens of a bucket now, that held `tokens` at `since`; times in seconds of one clock."""
    return min(burst, tokens + max(0.0, now - since) * rate)


class SharedBuckets:
    """One bucket per caller, the same for every worker.

    Args:
        env: the environment that the workers share.
        database: its database of buckets.
        clock: seconds, the same for every process of the machine until it boots.
    """

    def __init__(
        self,
        env: lmdb.Environment,
        database: Any,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._env = env
        self._database = database
        self._clock = clock

    def take(self, caller: str, rate: float, burst: float) -> float:
        """Take a token; 0 where there was one, else the seconds until there will be."""
        key = caller.encode()
        with self._env.begin(write=True, db=self._database) as transaction:
            now = self._clock()
            kept = transaction.get(key)
            tokens, since = _BUCKET.unpack(kept) if kept else (burst, now)
            tokens = refill(tokens, since, now, rate, burst)
            if tokens < 1.0:
                return (1.0 - tokens) / rate
            # never back in time, or the seconds between would be credited twice
            transaction.put(key, _BUCKET.pack(tokens - 1.0, max(now, since)))
        return 0.0

    def prune(self, rate: float, burst: float) -> int:
        """Remove the buckets that have filled up again; how many."""
        removed = 0
        with self._env.begin(write=True, db=self._database) as transaction:
            now = self._clock()
            cursor = transaction.cursor()
            cursor.first()
            while cursor.key():
                tokens, since = _BUCKET.unpack(cursor.value())
                if refill(tokens, since, now, rate, burst) >= burst:
                    cursor.delete()  # moves on to the next one
                    removed += 1
                else:
                    cursor.next()
        return removed


class Throttle:
    """Slows down what one address may do often only by mistake; bounded, in this process.

    Args:
        rate: a second, in the long run.
        burst: at once.
        capacity: addresses remembered; the one heard of longest ago is forgotten first.
        clock: seconds.
    """

    def __init__(
        self,
        rate: float,
        burst: int,
        capacity: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._capacity = capacity
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, address: str) -> int:
        """Whole seconds until the address may try again; 0: now."""
        tokens = self._tokens(address)
        return 0 if tokens >= 1.0 else math.ceil((1.0 - tokens) / self._rate)

    def count(self, address: str) -> bool:
        """Count one; False where the address had none left."""
        tokens = self._tokens(address)
        self._buckets[address] = (max(0.0, tokens - 1.0), self._clock())
        self._buckets.move_to_end(address)
        if len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)
        return tokens >= 1.0

    def _tokens(self, address: str) -> float:
        tokens, since = self._buckets.get(address, (float(self._burst), 0.0))
        return refill(tokens, since, self._clock(), self._rate, self._burst)
