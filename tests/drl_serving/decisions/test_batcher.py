"""Dynamic batching: decided together as if decided one after another, each with its own outcome."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drl_core.telemetry.event import Event
from drl_serving.app import Service
from drl_serving.decisions.engine.scoring import Caller, models_of
from drl_serving.decisions.schemas import Decision
from drl_serving.http.problems import Problem


@pytest.fixture
def service(publisher: Any) -> Iterator[Service]:
    publisher.publish("v1")
    made = Service(publisher.settings)
    asyncio.run(made.models.poll())
    yield made
    made.state.close()


def event(episode: str, step: int, **fields: Any) -> Event:
    return Event(sandbox_id="s", episode_id=episode, step=step, **fields)


def together(service: Service, events: list[Event]) -> list[Decision | BaseException]:
    """Ask for all in one turn of the loop."""

    async def scenario() -> list[Any]:
        asked = [service.batcher.decide(one, Caller(f"asks {n}")) for n, one in enumerate(events)]
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(scenario())


def test_one_turn_is_one_run_of_the_graph(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = service.models.current
    assert model is not None
    rows: list[int] = []
    run = model.run

    def counted(windows: Any, carry: Any) -> Any:
        rows.append(len(windows))
        return run(windows, carry)

    monkeypatch.setattr(model, "run", counted)
    decided = together(service, [event(f"e{n}", 0) for n in range(40)])
    assert rows == [40]
    assert [one.episode_id for one in decided if isinstance(one, Decision)] == [
        f"e{n}" for n in range(40)
    ]
    entries = service.journal.after(0, 100)
    assert [entry.principal for _, entry in entries] == [f"asks {n}" for n in range(40)]


def test_each_request_has_its_own_outcome(service: Service) -> None:
    first, gap, again, second, unknown = together(
        service, [event("a", 0), event("b", 7), event("a", 0), event("a", 1), event("c", 1)]
    )
    assert isinstance(first, Decision)
    assert again == first
    assert isinstance(second, Decision)
    assert second.step == 1
    for refused in (gap, unknown):
        assert isinstance(refused, Problem)
        assert refused.status == 409
    assert len(service.journal.after(0, 100)) == 2


def test_a_number_that_is_not_finite_fails_its_own_request_alone(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = service.models.current
    assert model is not None
    run = model.run

    def broken(windows: Any, carry: Any) -> Any:
        scores = run(windows, carry)
        scores.q_values[1, 3] = float("nan")
        return scores

    monkeypatch.setattr(model, "run", broken)
    one, two, three = together(service, [event(name, 0) for name in "abc"])
    assert isinstance(two, Problem)
    assert two.status == 500
    assert isinstance(one, Decision)
    assert isinstance(three, Decision)
    monkeypatch.undo()
    (undecided,) = together(service, [event("b", 0)])  # nothing was kept of it
    assert isinstance(undecided, Decision)


def test_what_fails_as_a_whole_is_told_to_everyone(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("the runtime gave up")

    assert service.models.current is not None
    monkeypatch.setattr(service.models.current, "run", refuse)
    outcomes = together(service, [event("a", 0), event("b", 0)])
    assert [str(one) for one in outcomes] == ["the runtime gave up"] * 2


def test_who_gave_up_waiting_is_left_out(service: Service) -> None:
    async def scenario() -> list[Any]:
        kept, given_up = (service.batcher.decide(event(n, 0), Caller()) for n in "ab")
        given_up.cancel()
        return list(await asyncio.gather(kept, given_up, return_exceptions=True))

    decided, cancelled = asyncio.run(scenario())
    assert isinstance(decided, Decision)
    assert isinstance(cancelled, asyncio.CancelledError)
    assert len(service.journal.after(0, 10)) == 1


def test_an_episode_that_another_worker_moves_on_meanwhile_is_decided_again(
    service: Service, publisher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = service.decisions
    read = service.episodes.read
    meanwhile = iter([[event("a", 0)]])

    def overtaken(names: Any) -> Any:
        known = read(names)
        with contextlib.suppress(StopIteration):
            events = next(meanwhile)
            monkeypatch.setattr(service.episodes, "read", read)
            other.decide(events, models_of(service.models), Caller("another worker"))
        return known

    monkeypatch.setattr(service.episodes, "read", overtaken)
    mine, untouched = together(service, [event("a", 0), event("b", 0)])
    assert isinstance(mine, Decision)
    assert isinstance(untouched, Decision)
    entries = {entry.decision.episode_id: entry for _, entry in service.journal.after(0, 10)}
    assert entries["a"].principal == "another worker"
    assert mine.decision_id == entries["a"].decision.decision_id


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    arrivals=st.lists(st.integers(0, 3), min_size=1, max_size=25),
    turns=st.lists(st.integers(1, 8), min_size=25, max_size=25),
    load=st.floats(1, 1e6),
)
@pytest.mark.property(8)
def test_any_turns_give_what_one_after_another_gives_bit_by_bit(
    service: Service, tmp_path: Path, arrivals: list[int], turns: list[int], load: float
) -> None:
    """`arrivals` is the order in which four episodes' steps come, `turns` how they are grouped."""
    answers: dict[str, list[Any]] = {}
    run = f"{service.journal.last()}"
    for way, sizes in (("alone", [1] * len(arrivals)), ("grouped", turns)):
        steps = [0] * 4
        events = []
        for episode in arrivals:
            fields = {
                "syscall_count": load * (episode + 1),
                "bytes_sent": load / (steps[episode] + 1),
            }
            events.append(event(f"{way} {run} {episode}", steps[episode], **fields))
            steps[episode] += 1
        decided: list[Any] = []
        for size in sizes:
            decided += together(service, events[:size]) if events else []
            events = events[size:]
        answers[way] = [(one.step, one.action, one.q_values) for one in decided]
    assert answers["alone"] == answers["grouped"]
