"""The in-flight limit, and the queueing delay that can be seen."""

import asyncio

import pytest

from drl_serving.gateway.load_shedding import LoadShedder, LoopTurn
from drl_serving.http.problems import Problem


def test_a_place_is_free_again_however_its_request_ends() -> None:
    refusals: list[float] = []
    shedder = LoadShedder(refusals.append)
    shedder.max_in_flight = 2
    with shedder, shedder:
        with pytest.raises(Problem) as refused, shedder:
            pytest.fail("a third one was let in")
        assert (refused.value.status, refused.value.retry_after_s) == (503, 1)
        assert shedder.in_flight == 2
    with pytest.raises(LookupError), shedder:
        raise LookupError
    assert shedder.in_flight == 0
    assert refusals == [1]


def test_a_request_waits_since_its_turn_of_the_loop_began() -> None:
    async def scenario() -> list[float]:
        turn = LoopTurn()
        found = [turn.elapsed(10.0), turn.elapsed(10.25)]
        await asyncio.sleep(0)
        return [*found, turn.elapsed(11.0), turn.elapsed(11.5)]

    assert asyncio.run(scenario()) == [0.0, 0.25, 0.0, 0.5]
