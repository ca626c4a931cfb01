"""The replay buffer: bounded, first in first out, uniform, and whole between threads."""

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from drl_assets.learning.data.replay_buffer import Columns, ReplayBuffer
from drl_assets.learning.learners import checkpoint, dqn
from drl_assets.learning.learners.networks import seeded_network
from tests.drl_assets.learning.small import saved

NUMBER = {"n": ((), np.int64), "wide": ((8,), np.int64)}


def rows(numbers: list[int]) -> Columns:
    column = np.array(numbers, dtype=np.int64)
    return {"n": column, "wide": np.repeat(column[:, None], 8, axis=1)}


@pytest.mark.property(21)
@pytest.mark.property(22)
@settings(max_examples=150, deadline=None)
@given(
    capacity=st.integers(1, 20),
    adds=st.lists(st.lists(st.integers(0, 99), max_size=30), max_size=8),
)
def test_it_holds_the_newest_rows_oldest_first_and_never_more(
    capacity: int, adds: list[list[int]]
) -> None:
    buffer, every = ReplayBuffer(NUMBER, capacity), list[int]()
    for numbers in adds:
        buffer.add(rows(numbers))
        every += numbers
        assert len(buffer) == min(len(every), capacity)
    kept = buffer.snapshot()
    assert kept["n"].tolist() == every[-capacity:]
    np.testing.assert_array_equal(kept["wide"], np.repeat(kept["n"][:, None], 8, axis=1))


@pytest.mark.property(21)
def test_its_capacity_is_100_000_by_default() -> None:
    buffer = ReplayBuffer({"n": ((), np.int64)})
    assert buffer.capacity == 100_000
    buffer.add({"n": np.arange(100_005)})
    assert len(buffer) == 100_000
    assert buffer.snapshot()["n"][0] == 5
    with pytest.raises(ValueError, match="capacity"):
        ReplayBuffer(NUMBER, 0)


@pytest.mark.property(23)
@pytest.mark.parametrize("stored", [50, 130])
def test_sampling_is_uniform_over_the_stored_rows(stored: int) -> None:
    buffer = ReplayBuffer(NUMBER, 100)
    buffer.add(rows(list(range(stored))))
    kept = buffer.snapshot()["n"]
    drawn = buffer.sample(200_000, np.random.default_rng(0))["n"]
    assert set(drawn) == set(kept)
    counts = np.bincount(drawn - kept.min(), minlength=len(kept))
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.property(23)
def test_an_empty_buffer_and_unfitting_columns_are_refused() -> None:
    buffer = ReplayBuffer(NUMBER, 5)
    with pytest.raises(ValueError, match="empty"):
        buffer.sample(1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="columns"):
        buffer.add({"n": np.zeros(2)})
    with pytest.raises(ValueError, match="one length"):
        buffer.add({"n": np.zeros(2), "wide": np.zeros((3, 8))})
    assert len(buffer) == 0


@pytest.mark.property(24)
def test_concurrent_adding_and_sampling_never_tears_a_row() -> None:
    buffer = ReplayBuffer(NUMBER, 64)
    buffer.add(rows([0]))
    torn, stop = list[str](), threading.Event()

    def add(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not stop.is_set():
            buffer.add(rows(rng.integers(1 << 40, size=rng.integers(1, 40)).tolist()))

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not stop.is_set():
            for got in (buffer.sample(32, rng), buffer.snapshot()):
                if (got["wide"] != got["n"][:, None]).any():
                    torn.append("torn")

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2) for work in (add, read)]
    for thread in threads:
        thread.start()
    threading.Event().wait(0.5)
    stop.set()
    for thread in threads:
        thread.join()
    assert not torn


@pytest.mark.property(25)
def test_saving_and_loading_restores_it_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    buffer = ReplayBuffer(dqn.TRANSITION_COLUMNS, 50)
    for _ in range(7):
        buffer.add(
            {
                name: (rng.random((11, *shape)) * 5).astype(dtype)
                for name, (shape, dtype) in dqn.TRANSITION_COLUMNS.items()
            }
        )
    before = buffer.snapshot()
    saved(seeded_network([8], 0), before).save(tmp_path / "c.pt")
    loaded = checkpoint.load(tmp_path / "c.pt").replay
    again = ReplayBuffer(dqn.TRANSITION_COLUMNS, 50)
    again.add(loaded)
    assert loaded.keys() == before.keys()
    for name, column in again.snapshot().items():
        assert column.dtype == before[name].dtype
        np.testing.assert_array_equal(column, before[name])
    one, two = (b.sample(20, np.random.default_rng(3)) for b in (buffer, again))
    assert len(one["state"]) == len(two["state"]) == 20
