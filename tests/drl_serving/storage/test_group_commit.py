"""Group commit: durable before the answer, shared, bounded, and no caller harms another."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_serving.storage.group_commit import BufferFull, GroupCommit


class Disk:
    """A writer whose writes wait until they are let go, and which refuses what it is told to."""

    def __init__(self, *, held: bool = False, refuses: int | None = None) -> None:
        self.groups: list[list[int]] = []
        self.free = threading.Event()
        self.entered = threading.Event()
        self.refuses = refuses
        if not held:
            self.free.set()

    def __call__(self, items: list[int]) -> None:
        self.entered.set()
        assert self.free.wait(30)
        if self.refuses in items:
            raise OSError(28, "no space left")
        self.groups.append(items)

    async def begun(self) -> None:
        await asyncio.to_thread(self.entered.wait, 30)


def run(
    disk: Disk,
    check: Callable[[GroupCommit[int]], Awaitable[None]],
    capacity: int = 100,
    max_group: int = 10,
    linger_s: float = 0.0,
) -> None:
    async def main() -> None:
        group = GroupCommit(disk, capacity=capacity, max_group=max_group, linger_s=linger_s)
        await check(group)
        await group.close()
        assert group.depth == 0

    asyncio.run(main())


@given(
    st.lists(st.lists(st.integers(), max_size=7), max_size=30),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.001]),
)
@settings(max_examples=100, deadline=None)
def test_every_submission_is_written_whole_once_and_in_order(
    submissions: list[list[int]], max_group: int, linger_s: float
) -> None:
    disk = Disk()

    async def check(group: GroupCommit[int]) -> None:
        await asyncio.gather(*(group.submit(items) for items in submissions))

    run(disk, check, capacity=10_000, max_group=max_group, linger_s=linger_s)
    written = [item for items in disk.groups for item in items]
    assert written == [item for items in submissions for item in items]
    longest = max((len(items) for items in submissions), default=0)
    assert all(len(items) <= max(max_group, longest) for items in disk.groups)


def test_callers_that_arrive_during_a_write_share_the_next_one() -> None:
    disk = Disk(held=True)

    async def check(group: GroupCommit[int]) -> None:
        first = asyncio.create_task(group.submit([0]))
        await disk.begun()
        rest = [asyncio.create_task(group.submit([n])) for n in range(1, 8)]
        await asyncio.sleep(0)
        assert group.depth == 8
        assert not any(task.done() for task in (first, *rest))
        disk.free.set()
        await asyncio.gather(first, *rest)

    run(disk, check)
    assert disk.groups == [[0], [1, 2, 3, 4, 5, 6, 7]]


def test_above_the_bound_a_caller_is_told_when_to_come_back_and_nothing_is_taken() -> None:
    disk = Disk(held=True)

    async def check(group: GroupCommit[int]) -> None:
        waiting = asyncio.create_task(group.submit([1, 2, 3]))
        await disk.begun()
        with pytest.raises(BufferFull) as refused:
            await group.submit([4, 5])
        assert refused.value.waiting == 3
        assert refused.value.retry_after_s >= 1
        disk.free.set()
        await waiting
        await group.submit([6, 7])

    run(disk, check, capacity=4)
    assert disk.groups == [[1, 2, 3], [6, 7]]


def test_a_submission_longer_than_the_bound_is_taken_when_nothing_waits() -> None:
    disk = Disk()

    async def check(group: GroupCommit[int]) -> None:
        await group.submit(list(range(50)))

    run(disk, check, capacity=10)
    assert disk.groups == [list(range(50))]


def test_a_failed_write_is_told_to_exactly_those_it_was_for() -> None:
    disk = Disk(held=True, refuses=2)

    async def check(group: GroupCommit[int]) -> None:
        tasks = [asyncio.create_task(group.submit([0]))]
        await disk.begun()
        tasks += [asyncio.create_task(group.submit([n])) for n in (1, 2, 3)]
        disk.free.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [type(None), OSError, OSError, type(None)]
        await group.submit([4])

    run(disk, check, max_group=2)
    assert disk.groups == [[0], [3], [4]]


def test_a_caller_that_goes_away_changes_nothing_for_the_others() -> None:
    disk = Disk(held=True)

    async def check(group: GroupCommit[int]) -> None:
        writing = asyncio.create_task(group.submit([0]))
        await disk.begun()
        gone = asyncio.create_task(group.submit([1]))
        stays = asyncio.create_task(group.submit([2]))
        await asyncio.sleep(0)
        gone.cancel()
        writing.cancel()
        disk.free.set()
        await stays
        assert writing.cancelled()
        assert gone.cancelled()

    run(disk, check)
    assert disk.groups == [[0], [2]]


def test_closing_writes_what_waits_and_takes_no_more() -> None:
    disk = Disk()

    async def main() -> None:
        group = GroupCommit(disk, capacity=100, max_group=2)
        tasks = [asyncio.create_task(group.submit([n])) for n in range(5)]
        await asyncio.sleep(0)
        await group.close()
        await asyncio.gather(*tasks)
        with pytest.raises(RuntimeError, match="closed"):
            await group.submit([9])

    asyncio.run(main())
    assert sorted(n for items in disk.groups for n in items) == [0, 1, 2, 3, 4]
