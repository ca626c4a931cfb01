"""Events to experiences: order, redelivery, gaps, hindsight terminals, held-out sessions."""

import random

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_assets.sources.synthetic import generate_events
from drl_assets.tables import schemas, transforms
from drl_core.policy import features
from drl_core.policy.actions import TERMINAL, Action
from drl_core.telemetry.event import Event, Intervention, Outcome
from tests import strategies


def event(step: int, episode: str = "e", **fields: object) -> Event:
    return msgspec.convert({"episode_id": episode, "step": step} | fields, Event)


def experiences(events: list[Event]) -> pl.DataFrame:
    return transforms.experiences_of([events])


@pytest.mark.property(5)
@pytest.mark.property(6)
@pytest.mark.property(8)
@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=8, unique=True), max_size=4),
    parts=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_any_order_and_redelivery_gives_one_ordered_table_with_its_gaps(
    steps: list[list[int]], parts: int, seed: int
) -> None:
    rng = random.Random(seed)
    every = [
        event(n, f"e{e}", syscall_count=100 * e + n) for e, own in enumerate(steps) for n in own
    ]
    sent = every + rng.choices(every, k=len(every)) if every else []
    rng.shuffle(sent)
    segments = [sent[p::parts] for p in range(parts)]
    frame, duplicates = transforms.telemetry_frame(segments)
    assert duplicates == len(every)
    got = list(frame.select("episode_id", "step", "syscall_count", "gap").iter_rows())
    expected = [
        (f"e{e}", n, 100.0 * e + n, before is not None and n > before + 1)
        for e, own in enumerate(steps)
        for before, n in zip([None, *sorted(own)], sorted(own), strict=False)
    ]
    assert got == expected


@pytest.mark.property(5)
def test_the_first_delivery_counts() -> None:
    frame, _ = transforms.telemetry_frame(
        [[event(0, syscall_count=1)], [event(0, syscall_count=2)]]
    )
    assert frame["syscall_count"].to_list() == [1.0]


@pytest.mark.property(9)
@pytest.mark.property(10)
@settings(max_examples=30, deadline=None)
@given(events=st.lists(strategies.events(), max_size=6))
def test_any_events_pass_the_schemas_of_all_three_tables(events: list[Event]) -> None:
    telemetry = transforms.telemetry_frame([events]).frame
    states = transforms.state_frame(telemetry).frame
    frame = transforms.experience_frame(telemetry, states)
    assert schemas.violations(schemas.TELEMETRY, telemetry) == []
    assert schemas.violations(schemas.STATES, states) == []
    assert schemas.violations(schemas.EXPERIENCES, frame) == []
    matrix = states["state"].to_numpy().reshape(-1, features.FEATURE_COUNT)
    assert np.isfinite(matrix).all()
    assert ((matrix >= 0) & (matrix <= 1)).all()


@pytest.mark.property(8)
@pytest.mark.property(12)
def test_episodes_of_the_same_name_in_two_sandboxes_stay_apart() -> None:
    mixed = [
        event(n, sandbox_id=sandbox, syscall_count=count)
        for n in range(3)
        for sandbox, count in (("a", 5), ("b", 5000))
    ]
    states = transforms.state_frame(transforms.telemetry_frame([mixed]).frame).frame
    alone = [e for e in mixed if e.sandbox_id == "b"]
    expected = transforms.state_frame(transforms.telemetry_frame([alone]).frame).frame
    assert states.filter(pl.col("sandbox_id") == "b").equals(expected)


@pytest.mark.property(14)
@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_permuting_labels_and_outcomes_changes_no_state(seed: int) -> None:
    events = list(generate_events(6, 4, seed=seed % 100))
    rng = random.Random(seed)
    labels = [(e.is_malicious, e.severity, e.attack_type) for e in events]
    rng.shuffle(labels)
    done = [
        Intervention(action=rng.randrange(5), propensity=0.5, outcome=rng.choice(list(Outcome)))
        for _ in events
    ]
    changed = [
        msgspec.structs.replace(
            e, is_malicious=bad, severity=severity, attack_type=kind, intervention=act
        )
        for e, (bad, severity, kind), act in zip(events, labels, done, strict=True)
    ]
    first, second = (
        transforms.state_frame(transforms.telemetry_frame([part]).frame).frame
        for part in (events, changed)
    )
    assert first.equals(second)


@pytest.mark.property(15)
def test_the_next_state_of_a_step_is_the_state_of_the_step_after_it() -> None:
    frame = experiences(list(generate_events(5, 10)))
    windows = frame["window"].to_numpy()
    states = frame["state"].to_numpy()
    for episode in range(5):
        carry = features.start()
        for row in range(episode * 10, episode * 10 + 9):
            _, carry = features.step(np, windows[row : row + 1], carry)
            following, _ = features.step(np, windows[row + 1 : row + 2], carry)
            np.testing.assert_allclose(states[row + 1], following[0], atol=1e-6)


@pytest.mark.property(16)
@pytest.mark.property(19)
def test_only_an_end_of_its_own_or_a_containing_action_terminates() -> None:
    whole = [event(n, "whole", is_malicious=True, episode_end=n == 2) for n in range(3)]
    part = [event(n, "part", is_malicious=True) for n in range(2)]
    unknown = [event(0, "unlabelled")]
    frame = experiences([*whole, *part, *unknown])
    rows = {k: g for (k,), g in frame.group_by("episode_id", maintain_order=True)}
    assert rows["whole"]["terminated"].to_list() == [False, False, True]
    assert not rows["whole"]["truncated"].any()
    assert not rows["part"]["terminated"].any()
    assert rows["part"]["truncated"].to_list() == [False, True]
    assert rows["unlabelled"]["truncated"].to_list() == [True], "kept and marked"
    assert rows["unlabelled"]["rewards"].to_list() == [None]
    terminal = frame["terminal"].to_numpy()
    assert terminal[:, list(TERMINAL)].all()
    watching = [Action.CONTINUE_MONITORING, Action.INCREASE_ISOLATION]
    ended = frame["terminated"].to_numpy()
    np.testing.assert_array_equal(terminal[:, watching], np.column_stack([ended, ended]))


def test_an_end_before_the_last_window_is_none() -> None:
    frame = experiences([event(0, episode_end=True, is_malicious=False), event(1)])
    assert not frame["terminated"].any()
    assert frame["truncated"].to_list() == [False, True]


def test_a_label_on_any_window_labels_the_whole_episode() -> None:
    late = [event(0), event(1, is_malicious=True, severity=0.5, attack_type="x"), event(2)]
    every = [event(n, is_malicious=True, severity=0.5, attack_type="x") for n in range(3)]
    assert experiences(late).equals(experiences(every))


@pytest.mark.property(6)
def test_a_session_is_what_was_named_else_the_artefact_else_the_episode() -> None:
    digest = "AB" * 32
    frame = transforms.telemetry_frame(
        [
            [
                event(0, "a", session_id="s", artifact_sha256=digest),
                event(0, "b", artifact_sha256=digest),
                event(0, "c", sandbox_id="box"),
            ]
        ]
    ).frame
    named = dict(frame.select("episode_id", "session_id").iter_rows())
    assert named == {"a": "s", "b": digest.lower(), "c": "box/c"}


def test_interventions_and_extra_signals_travel() -> None:
    frame = experiences(
        [
            event(0, is_malicious=True, severity=1.0),
            event(
                1,
                is_malicious=True,
                severity=1.0,
                extra={"files_encrypted": 4},
                intervention={"action": 3, "propensity": 0.25, "outcome": "applied"},
            ),
        ]
    )
    assert frame.row(1, named=True)["propensity"] == 0.25
    assert frame["action"].to_list() == [None, 3]
    assert frame["outcome"].to_list() == [None, "applied"]
    np.testing.assert_allclose(frame["damage"].to_numpy(), [0.05, 0.05 + 2.0])
    np.testing.assert_allclose(frame["rewards"].to_list()[0], [-2.05, -1.25, -0.5, 0.0, -0.9])


def test_no_events_make_empty_tables() -> None:
    frame = transforms.experiences_of([])
    assert frame.is_empty()
    assert schemas.violations(schemas.EXPERIENCES, frame) == []
    assert transforms.hold_out(frame, 0.5, {})["held_out"].to_list() == []


sessions = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.sampled_from([True, False, None]),
    min_size=1,
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(kinds=sessions, share=st.floats(0, 1), order=st.randoms(), earlier=st.integers(0, 12))
def test_a_session_is_on_one_side_and_stays_there(
    kinds: dict[str, bool | None], share: float, order: random.Random, earlier: int
) -> None:
    rows = [(name, kind) for name, kind in kinds.items() for _ in range(3)]
    order.shuffle(rows)
    frame = pl.DataFrame(
        rows, schema={"session_id": pl.String, "is_malicious": pl.Boolean}, orient="row"
    )
    marked = transforms.hold_out(frame, share, {})
    sides = marked.group_by("session_id").agg(pl.col("held_out").n_unique())
    assert sides["held_out"].to_list() == [1] * len(kinds), "split by session, never by row"
    assigned = dict(marked.select("session_id", "held_out").iter_rows())
    known = {name: not assigned[name] for name in list(assigned)[:earlier]}
    again = transforms.hold_out(frame, share, known)
    now = dict(again.select("session_id", "held_out").iter_rows())
    assert {name: now[name] for name in known} == known
    for kind in (True, False, None):
        mine = [name for name, k in kinds.items() if k is kind]
        if len(mine) >= 3 and share > 0:
            assert 1 <= sum(assigned[name] for name in mine) < len(mine)
