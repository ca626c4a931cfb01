"""Back-pressure: telemetry faster than the disk is asked to wait, never dropped, in order."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_core.telemetry.event import (
    MAX_RECORD_BYTES,
    Event,
    TelemetryError,
    encode_event,
    encode_lines,
)
from drl_core.telemetry.landing import LandingError, LandingZone
from drl_serving.http.request_body import JSON, Limits
from drl_serving.storage.group_commit import BufferFull
from drl_serving.telemetry.service import TelemetryService

BUFFER = 10_000


def lines(first: int, count: int, episode: str = "e") -> bytes:
    return encode_lines(
        Event(episode_id=episode, step=first + n, syscall_count=1.0) for n in range(count)
    )


def landed(root: Path) -> list[Event]:
    zone = LandingZone(root)
    zone.seal()
    return [e for key in sorted(zone.keys()) for part in zone.read(key) for e in part]


async def cut(content: bytes, size: int) -> AsyncIterator[bytes]:
    for low in range(0, len(content), size):
        yield content[low : low + size]


@pytest.fixture
def stalled() -> Iterator[threading.Event]:
    """Set when the disk, which answers nothing until then, goes on."""
    goes_on = threading.Event()
    yield goes_on
    goes_on.set()


@pytest.mark.property(7)
def test_while_the_disk_stalls_ten_thousand_wait_and_the_rest_are_told_to(
    tmp_path: Path, stalled: threading.Event
) -> None:
    async def scenario() -> int:
        service = TelemetryService(tmp_path, Limits(BUFFER), BUFFER)
        service._writer._thread.submit(stalled.wait)  # as an fsync does that does not return
        tasks = [
            asyncio.create_task(service.ingest(lines(0, 1000, f"e{n}"), "application/x-ndjson"))
            for n in range(10)
        ]
        while service.waiting < BUFFER:
            await asyncio.sleep(0.01)
        refused = 0
        for step in range(20):
            with pytest.raises(BufferFull) as told:
                await service.ingest(encode_event(Event(episode_id="late", step=step)), JSON)
            assert told.value.retry_after_s >= 1
            refused += 1
        assert service.waiting == BUFFER  # a refusal holds nothing
        assert not any(
            task.done() for task in tasks
        )  # nothing is acknowledged before it is durable
        stalled.set()
        answers = await asyncio.gather(*tasks)
        assert await service.ingest(lines(0, 1, "late"), JSON)
        await service.close()
        assert refused == 20
        return sum(answer.accepted for answer in answers)

    assert asyncio.run(scenario()) == BUFFER
    keys = [event.key for event in landed(tmp_path)]
    assert len(keys) == len(set(keys)) == BUFFER + 1


@pytest.mark.property(7)
def test_a_stream_is_read_no_faster_than_it_is_landed(
    tmp_path: Path, stalled: threading.Event
) -> None:
    content = lines(0, 30_000)

    async def scenario() -> tuple[int, int]:
        service = TelemetryService(tmp_path, Limits(BUFFER), BUFFER)
        service._writer._thread.submit(stalled.wait)
        read = 0

        async def sender() -> AsyncIterator[bytes]:
            nonlocal read
            async for chunk in cut(content, 65_536):
                read += len(chunk)
                yield chunk

        streaming = asyncio.create_task(service.stream(sender(), 30.0))
        await asyncio.sleep(0.5)
        held = read
        stalled.set()
        answer = await streaming
        await service.close()
        return held, answer.accepted

    held, accepted = asyncio.run(scenario())
    assert held < len(content) / 3  # the sender was made to wait
    assert accepted == 30_000
    assert [event.step for event in landed(tmp_path)] == list(range(30_000))


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 400), count=st.integers(1, 30), bad=st.none() | st.integers(0, 29))
def test_a_stream_may_be_cut_anywhere(
    tmp_path_factory: pytest.TempPathFactory, size: int, count: int, bad: int | None
) -> None:
    root = tmp_path_factory.mktemp("landing")
    rows = lines(0, count).splitlines()
    if bad is not None and bad < count:
        rows[bad] = b'{"episode_id": "e", "step": -1}'
    content = b"\n".join(rows)  # the last line has no end

    async def scenario() -> None:
        service = TelemetryService(root, Limits(BUFFER), BUFFER)
        answer = await service.stream(cut(content, size), 5.0)
        await service.close()
        wrong = int(bad is not None and bad < count)
        assert (answer.accepted, answer.refused) == (count - wrong, wrong)
        if wrong:
            assert (answer.refusals[0].record, answer.refusals[0].field) == (bad, "step")

    asyncio.run(scenario())
    assert [e.step for e in landed(root)] == [n for n in range(count) if n != bad]


def test_a_sender_that_falls_silent_and_a_line_without_end_are_errors_after_what_came(
    tmp_path: Path,
) -> None:
    async def silent() -> AsyncIterator[bytes]:
        yield lines(0, 3)
        await asyncio.sleep(60)

    async def endless() -> AsyncIterator[bytes]:
        yield lines(3, 3)
        for _ in range(1 + 2 * MAX_RECORD_BYTES // 65_536):
            yield b"x" * 65_536

    async def scenario() -> None:
        service = TelemetryService(tmp_path, Limits(BUFFER), BUFFER)
        with pytest.raises(TimeoutError):
            await service.stream(silent(), 0.2)
        with pytest.raises(TelemetryError, match="a line of more than"):
            await service.stream(endless(), 5.0)
        await service.close()

    asyncio.run(scenario())
    assert [event.step for event in landed(tmp_path)] == list(range(6))


def test_a_disk_that_refuses_acknowledges_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "landing"
    blocked.write_text("a file where the folder should be")

    async def scenario() -> None:
        service = TelemetryService(blocked, Limits(BUFFER), BUFFER)
        with pytest.raises(LandingError):
            await service.ingest(lines(0, 2), "application/x-ndjson")
        assert service.waiting == 0
        await service.close()

    asyncio.run(scenario())
