"""Episodes are the same in every worker, outlive kill -9, and come back from telemetry."""

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_core.policy import features
from drl_core.settings import Settings
from drl_core.telemetry.event import validate_event
from drl_core.telemetry.landing import LandingZone
from drl_serving.decisions.state.episode_store import Change, Episode, EpisodeStore, database_key
from drl_serving.decisions.state.recovery import restore
from drl_serving.storage.shared_state import SharedState


def event(step: int, episode: object = "e", **fields: Any) -> dict[str, Any]:
    return {"sandbox_id": "s", "episode_id": episode, "step": step, "syscall_count": 10, **fields}


def workers(service: Any) -> list[psutil.Process]:
    """The processes that answer: children which listen."""
    children = psutil.Process(service.process.pid).children()
    alive = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in alive if "recovery" not in " ".join(child.cmdline())]


def ask(service: Any, body: Any, path: str = "/v1/decisions") -> httpx.Response:
    """A connection of its own, so that any worker may answer."""
    return httpx.post(f"{service.client.base_url}{path}", json=body, timeout=30)


@pytest.mark.integration
@pytest.mark.property(8)
@pytest.mark.property(39)
def test_whichever_worker_answers_an_episode_is_decided_as_by_one(
    publisher: Any, start_service: Any
) -> None:
    publisher.publish("v1")
    home = Path(publisher.settings.home)
    sizes = {name: 10.0 ** (1 + n) for n, name in enumerate("abcdef")}
    with start_service(home, DRL_SERVING__WORKERS="2") as service:
        service.wait_until(lambda: len(workers(service)) == 2)

        def run(name: str) -> list[dict[str, Any]]:
            answers = []
            for step in range(12):
                sent = event(step, name, syscall_count=sizes[name])
                with ThreadPoolExecutor(3) as pool:  # the same step three times at once
                    same = list(pool.map(ask, [service] * 3, [sent] * 3))
                assert [answer.status_code for answer in same] == [200] * 3
                assert len({answer.content for answer in same}) == 1
                answers.append(same[0].json())
            return answers

        with ThreadPoolExecutor(3) as pool:
            shared = dict(zip(sizes, pool.map(run, sizes), strict=True))
        busy = [worker.cpu_times().user for worker in workers(service)]
        assert min(busy) > 0.3 * max(busy)  # both took part
    alone = Path(home, "alone")
    alone.mkdir()
    for name in ("models", "keys"):
        (alone / name).symlink_to(home / name)
    with start_service(alone, DRL_SERVING__WORKERS="1") as service:
        for name, answers in shared.items():
            steps = [event(n, name, syscall_count=sizes[name]) for n in range(12)]
            single = ask(service, steps).json()
            for one, other in zip(answers, single, strict=True):
                assert one["action"] == other["action"]
                np.testing.assert_allclose(one["q_values"], other["q_values"], atol=1e-6)


@pytest.mark.integration
@pytest.mark.property(4)
def test_episodes_outlive_a_worker_that_is_killed(publisher: Any, start_service: Any) -> None:
    publisher.publish("v1")
    with start_service(Path(publisher.settings.home), DRL_SERVING__WORKERS="2") as service:
        service.wait_until(lambda: len(workers(service)) == 2)
        last = [ask(service, event(0)).json()]
        for step in range(1, 4):
            victim = workers(service)[step % 2]
            os.kill(victim.pid, signal.SIGKILL)
            answer = patient(service, event(step - 1))
            assert answer == last[-1]  # the step sent again has the decision that it had
            last.append(patient(service, event(step)))
            service.wait_until(lambda: len(workers(service)) == 2)
        assert [decision["step"] for decision in last] == [0, 1, 2, 3]


def patient(service: Any, body: Any) -> Any:
    """As a caller does who is told to try again, or whose connection broke."""
    until = time.monotonic() + 30
    while True:
        try:
            answer = ask(service, body)
            if answer.status_code == 200:
                return answer.json()
            assert answer.status_code == 503
        except httpx.TransportError:
            pass
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.integration
def test_after_the_shared_state_is_gone_telemetry_brings_episodes_back(
    publisher: Any, start_service: Any
) -> None:
    publisher.publish("v1")
    home = Path(publisher.settings.home)
    steps = [event(n, bytes_sent=n * 1e4) for n in range(6)]
    with start_service(home) as service:
        known = ask(service, steps).json()
        assert ask(service, steps[:5], "/v1/telemetry").status_code == 202
        assert ask(service, event(1, "gap"), "/v1/telemetry").status_code == 202
        only = [event(n, "only") for n in range(3)]
        assert ask(service, only, "/v1/telemetry").status_code == 202
    for path in (home / "state" / "shared").iterdir():
        path.unlink()  # as a boot does
    with start_service(home) as service:
        service.wait_until(lambda: service.client.get("/health/ready").json()["episodes"] == 2)
        for asked in (event(0, "only"), only):  # its telemetry came, nobody asked for decisions yet
            assert ask(service, asked).status_code == 200
        again = ask(service, steps[5])
        assert again.status_code == 200
        np.testing.assert_allclose(again.json()["q_values"], known[5]["q_values"], atol=1e-6)
        begun = ask(service, steps[0])  # decided already, so it is no beginning any more
        assert (begun.status_code, begun.json()["type"]) == (409, "urn:drl:problem:old-step")
        gap = ask(service, event(2, "gap"))
        assert gap.status_code == 409
        assert "from step 0" in gap.json()["next"]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[SharedState]:
    opened = SharedState(tmp_path, 1000)
    yield opened
    opened.close()


@settings(max_examples=100, deadline=None)
@given(
    order=st.permutations(range(8)), lost=st.none() | st.integers(0, 7), sealed=st.integers(0, 8)
)
def test_restored_is_what_the_fold_gives_up_to_the_first_gap(
    order: list[int], lost: int | None, sealed: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        configured = Settings(home=folder)
        zone = LandingZone(configured.landing_path)
        events = [validate_event(event(n, cpu_usage=n * 9.0)) for n in range(8)]
        for place, step in enumerate(order):
            if step != lost:
                zone.land([events[step]])
            if place == sealed:
                zone.seal()
        state = SharedState(home / "state", 1000)
        last = 7 if lost is None else lost - 1
        assert restore(configured, state) == (last >= 0)
        key = database_key(("s", "e"))
        known = EpisodeStore(state, 1000, 3600).read([key])[key]
        state.close()
        if last < 0:
            assert known is None
            return
        assert known is not None
        rows = np.stack([features.window(one) for one in events[: last + 1]])
        _, carry = features.fold(rows, np.arange(last + 1) == 0)
        assert known.episode.step == last
        assert known.episode.decision is None
        np.testing.assert_allclose(known.episode.carry(), carry[0])


def test_the_oldest_go_first_and_the_forgotten_are_forgotten_whole(state: SharedState) -> None:
    store = EpisodeStore(state, 3, 3600)
    for name in (b"a", b"b", b"c"):
        put(store, name)
    put(store, b"a")  # used again
    put(store, b"d")
    found = store.read([b"a", b"b", b"c", b"d"])
    assert [name for name, known in found.items() if known] == [b"a", b"c", b"d"]
    assert len(store) == 3
    late = EpisodeStore(state, 3, 1)
    time.sleep(1.1)
    assert late.read([b"a"]) == {b"a": None}
    put(late, b"e")
    assert len(late) == 1  # the others were too old


def put(store: EpisodeStore, name: bytes) -> None:
    known = store.read([name])
    before = known[name].episode.step if known[name] else -1
    empty = features.start()[0].tobytes()
    moved = {name: Episode(before + 1, 1, empty, empty, None)}
    assert store.commit(known, [Change(moved)]) == [True]


def test_of_two_that_move_an_episode_on_at_once_one_is_told_to_read_again(
    state: SharedState,
) -> None:
    store = EpisodeStore(state, 10, 3600)
    put(store, b"a")
    known = store.read([b"a"])
    assert known[b"a"] is not None
    ahead = Episode(1, 1, known[b"a"].episode.after, known[b"a"].episode.after, None)
    results: list[bool] = []
    threads = [
        threading.Thread(
            target=lambda: results.extend(store.commit(known, [Change({b"a": ahead})]))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 7 + [True]


def test_another_boot_makes_the_shared_state_anew(tmp_path: Path) -> None:
    state = SharedState(tmp_path, 10)
    put(EpisodeStore(state, 10, 3600), b"a")
    state.close()
    (tmp_path / "shared" / "boot_id").write_text(json.dumps("another"))
    state = SharedState(tmp_path, 10)
    assert len(EpisodeStore(state, 10, 3600)) == 0
    state.close()
