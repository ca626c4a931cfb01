"""Dynamic batching: decided together as if decided one after another, each with its own outcome."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drl_core.telemetry.event import Event
from drl_serving.app import Service
from drl_serving.decisions.engine.requests import Caller, Decided, DecisionRequest
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
        asked = [
            service.decisions.submit(DecisionRequest([one], Caller(f"asks {n}")))
            for n, one in enumerate(events)
        ]
        return await asyncio.gather(*asked, return_exceptions=True)

    outcomes = asyncio.run(scenario())
    return [one if isinstance(one, BaseException) else one.answers[0] for one in outcomes]


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


async def batch(service: Service, asked: list[DecisionRequest]) -> list[Any]:
    """Submit requests in one turn of the loop."""
    futures = [service.decisions.submit(request) for request in asked]
    return list(await asyncio.gather(*futures, return_exceptions=True))


def kept(service: Service) -> list[tuple[str, int]]:
    """Episodes and steps in the journal."""
    entries = [entry.decision for _, entry in service.journal.after(0, 1000)]
    return [(decision.episode_id, decision.step) for decision in entries]


@pytest.mark.parametrize("wrong", range(6))
def test_a_list_with_an_event_out_of_order_keeps_nothing(service: Service, wrong: int) -> None:
    events = [event("ab"[n % 2], n // 2) for n in range(6)]
    events[wrong] = event("ab"[wrong % 2], 9)
    with pytest.raises(Problem) as refused:
        service.decisions.decide_now(DecisionRequest(events))
    assert (refused.value.status, refused.value.extra["record"]) == (409, wrong)
    assert kept(service) == []
    assert len(service.episodes) == 0


def test_mixed_requests_of_one_turn_have_independent_outcomes(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single event, lists, and carried histories; what fails takes nothing with it."""
    model = service.models.current
    assert model is not None
    run = model.run

    def broken(windows: Any, carry: Any) -> Any:
        scores = run(windows, carry)
        scores.q_values[windows[:, 0] == 13.0] = np.inf
        return scores

    monkeypatch.setattr(model, "run", broken)
    single, gap, whole, infinite, carried, bad_carried, after = asyncio.run(
        batch(
            service,
            [
                DecisionRequest([event("a", 0)]),
                DecisionRequest([event("b", 0), event("c", 0), event("b", 5)]),
                DecisionRequest([event("d", 0), event("e", 0), event("d", 1)]),
                DecisionRequest([event("f", 0), event("f", 1, syscall_count=13.0)]),
                DecisionRequest([event("g", 0), event("g", 0)], carries=np.zeros((2, 14))),
                DecisionRequest([event("h", 0, syscall_count=13.0)], carries=np.zeros((1, 14))),
                DecisionRequest([event("f", 0), event("a", 1)]),
            ],
        )
    )
    assert [(one.status, one.name) for one in (gap, infinite, bad_carried)] == [
        (409, "missing-steps"),
        (500, "model-not-finite"),
        (500, "model-not-finite"),
    ]
    for decided in (single, whole, carried, after):
        assert isinstance(decided, Decided)
    assert [(one.episode_id, one.step) for one in whole.answers] == [("d", 0), ("e", 0), ("d", 1)]
    assert kept(service) == [
        ("a", 0), ("d", 0), ("e", 0), ("d", 1), ("g", 0), ("g", 0), ("f", 0), ("a", 1),
    ]  # fmt: skip
    assert len(service.episodes) == 4  # a, d, e, f: carried histories leave none behind


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
        kept, given_up = (service.decisions.submit(DecisionRequest([event(n, 0)])) for n in "ab")
        given_up.cancel()
        return list(await asyncio.gather(kept, given_up, return_exceptions=True))

    decided, cancelled = asyncio.run(scenario())
    assert isinstance(decided, Decided)
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
            other.decide_now(DecisionRequest(events, Caller("another worker")))
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
