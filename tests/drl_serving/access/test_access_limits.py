"""Token buckets: never more than rate * t + burst, whichever process takes them."""

import subprocess
import sys
import time
from pathlib import Path

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drl_serving.access.rate_limits import SharedBuckets, Throttle, refill

_TAKER = """
import sys, time, lmdb
from drl_serving.access.rate_limits import SharedBuckets
env = lmdb.open(sys.argv[1], max_dbs=1, sync=False, metasync=False, writemap=True)
buckets = SharedBuckets(env, env.open_db(b"buckets"))
print("ready", flush=True)
sys.stdin.readline()
until, taken = time.monotonic() + float(sys.argv[2]), 0
while time.monotonic() < until:
    taken += buckets.take("caller", float(sys.argv[3]), float(sys.argv[4])) == 0
print(taken)
"""


def open_env(path: Path) -> lmdb.Environment:
    return lmdb.open(str(path), max_dbs=1, sync=False, metasync=False, writemap=True)


@pytest.fixture
def env(tmp_path: Path) -> lmdb.Environment:
    return open_env(tmp_path / "shared")


@given(
    waits=st.lists(st.floats(0, 10), max_size=60),
    rate=st.floats(0.1, 100),
    burst=st.integers(1, 20),
)
def test_a_bucket_admits_no_more_than_its_rate_and_burst(
    waits: list[float], rate: float, burst: int
) -> None:
    now, tokens, since, admitted = 0.0, float(burst), 0.0, 0
    for wait in waits:
        now += wait
        tokens, since = refill(tokens, since, now, rate, burst), now
        if tokens >= 1:
            tokens -= 1
            admitted += 1
        assert admitted <= rate * now + burst + 1e-6
        assert 0 <= tokens <= burst


def test_a_refused_caller_is_told_when_there_will_be_a_token(env: lmdb.Environment) -> None:
    now = [100.0]
    buckets = SharedBuckets(env, env.open_db(b"buckets"), clock=lambda: now[0])
    assert [buckets.take("a", 0.5, 2) for _ in range(2)] == [0, 0]
    wait = buckets.take("a", 0.5, 2)
    assert wait == pytest.approx(2.0)
    assert buckets.take("b", 0.5, 2) == 0, "another caller has a bucket of its own"
    now[0] += wait
    assert buckets.take("a", 0.5, 2) == 0
    assert buckets.take("a", 0.5, 2) > 0


def test_full_buckets_are_removed(env: lmdb.Environment) -> None:
    now = [0.0]
    buckets = SharedBuckets(env, env.open_db(b"buckets"), clock=lambda: now[0])
    for caller in range(50):
        buckets.take(f"c{caller}", 1.0, 2)
    assert buckets.prune(1.0, 2) == 0
    now[0] = 0.5
    buckets.take("late", 1.0, 2)
    now[0] = 1.2
    assert buckets.prune(1.0, 2) == 50
    now[0] = 2.0
    assert buckets.prune(1.0, 2) == 1


def test_two_processes_share_a_callers_limit(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    open_env(path).close()
    seconds, rate, burst = 1.0, 100.0, 20.0
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _TAKER, str(path), str(seconds), str(rate), str(burst)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    taken = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        taken.append(int(process.communicate(timeout=60)[0]))
    passed = time.monotonic() - began
    assert sum(taken) <= rate * passed + burst
    assert sum(taken) >= burst
    assert min(taken) > 0, "both were admitted at times"


def test_a_throttle_slows_one_address_and_forgets_the_oldest() -> None:
    now = [0.0]
    throttle = Throttle(rate=0.5, burst=2, capacity=3, clock=lambda: now[0])
    assert throttle.count("a")
    assert throttle.count("a")
    assert not throttle.count("a")
    assert throttle.wait("a") == 2
    assert throttle.wait("b") == 0
    now[0] = 2.0
    assert throttle.wait("a") == 0
    throttle.count("a")
    for other in "bcd":
        throttle.count(other)
    assert len(throttle._buckets) == 3
    assert throttle.wait("a") == 0, "forgotten, like one never heard of"
