"""Progress of episodes over batches, in a real PostgreSQL."""

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_assets.tables.episode_progress import EpisodeProgress, load, save
from drl_core.telemetry.event import TelemetryError, parse_event

Batches = dict[str, tuple[set[int], list[float]]]


def ranges(steps: set[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for step in sorted(steps):
        if found and found[-1][1] == step:
            found[-1] = (found[-1][0], step + 1)
        else:
            found.append((step, step + 1))
    return found


batches = st.dictionaries(
    st.text("abAB01-_", min_size=1, max_size=6),
    st.tuples(
        st.sets(st.integers(0, 30), min_size=1),
        st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    ),
    max_size=5,
)


def test_load_is_the_union_of_earlier_batches_with_the_newest_carry(postgres_url: str) -> None:
    @settings(max_examples=100, deadline=None)
    @given(batches, st.text("abAB01-_", min_size=1, max_size=6))
    def holds(given_batches: Batches, before: str) -> None:
        with psycopg.connect(postgres_url) as connection:
            connection.execute("TRUNCATE episode_progress")
        for key, (steps, carry) in given_batches.items():
            save(postgres_url, key, [EpisodeProgress("s", "e", key, ranges(steps), carry)])
        loaded = load(postgres_url, [("s", "e"), ("s", "other")], before)
        earlier = sorted(key for key in given_batches if key < before)
        if not earlier:
            assert loaded == {}
            return
        union = set[int]().union(*(given_batches[key][0] for key in earlier))
        newest = earlier[-1]
        expected = EpisodeProgress("s", "e", newest, ranges(union), given_batches[newest][1])
        assert loaded == {("s", "e"): expected}

    holds()


def test_saving_a_batch_again_replaces_its_rows(postgres_url: str) -> None:
    save(postgres_url, "b1", [EpisodeProgress("x", f"{n}", "b1", [(0, 5)], [1.0]) for n in "12"])
    save(postgres_url, "b1", [EpisodeProgress("x", "1", "b1", [(0, 3)], [2.0])])
    loaded = load(postgres_url, [("x", "1"), ("x", "2")], "b2")
    assert loaded == {("x", "1"): EpisodeProgress("x", "1", "b1", [(0, 3)], [2.0])}


def test_sandboxes_and_episodes_are_not_mixed(postgres_url: str) -> None:
    pairs = [("a", "1"), ("a", "2"), ("b", "1"), ("b", 'quoted "{,}\\\t\n')]
    rows = [
        EpisodeProgress(sandbox, episode, "m1", [(number, number + 1)], [float(number)])
        for number, (sandbox, episode) in enumerate(pairs)
    ]
    save(postgres_url, "m1", rows)
    assert load(postgres_url, pairs, "m2") == {
        (row.sandbox_id, row.episode_id): row for row in rows
    }


def test_a_row_of_another_batch_or_without_steps_is_refused(postgres_url: str) -> None:
    with pytest.raises(ValueError, match="batch_key"):
        save(postgres_url, "b1", [EpisodeProgress("x", "1", "b2", [(0, 1)], [])])
    for steps in ([], [(3, 3)]):
        with pytest.raises(ValueError, match="steps"):
            save(postgres_url, "b1", [EpisodeProgress("x", "1", "b1", steps, [])])


def test_twenty_thousand_episodes_go_through_one_batch(postgres_url: str) -> None:
    keys = [("many", f"{number}") for number in range(20_000)]
    rows = [EpisodeProgress(*key, "k1", [(0, 9), (10, 20)], [0.5] * 12) for key in keys]
    save(postgres_url, "k1", rows)
    assert load(postgres_url, keys, "k2") == dict(zip(keys, rows, strict=True))


def test_an_identity_that_no_database_keeps_is_refused_when_it_is_parsed() -> None:
    with pytest.raises(TelemetryError, match="episode_id"):
        parse_event(b'{"episode_id": "a\\u0000b", "step": 1}')
