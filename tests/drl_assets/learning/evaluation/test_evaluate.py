"""Metrics and baselines on episodes whose answers can be worked out by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_assets.learning.data import trajectories
from drl_assets.learning.data.environment import LockstepReplay
from drl_assets.learning.data.episodes import Episodes
from drl_assets.learning.evaluation import bootstrap, curves, evaluate, policies
from drl_assets.learning.evaluation.baselines import tune
from drl_assets.learning.evaluation.bootstrap import SessionBootstrap
from drl_assets.learning.evaluation.evaluate import Rollouts, containment_at, metrics, simulate
from drl_assets.learning.export import attack_patterns, onnx_export
from drl_assets.learning.learners.networks import QNetwork, seeded_network
from drl_core.policy.actions import Action
from drl_core.policy.reward import DEFAULT_COSTS
from drl_core.telemetry.event import Event
from tests.drl_assets.learning.small import episodes_of

GAMMA = 0.99


def make(kinds: str, sessions: int = 2, windows: int = 3) -> Episodes:
    """One episode a letter: m malicious at severity 1, b benign; the damage of a window is 0.05."""
    return episodes_of(
        Event(
            episode_id=f"e{n:03d}",
            step=step,
            session_id=f"s{n % sessions}",
            window_s=2.0,
            syscall_count=1000 if kind == "m" else 1,
            is_malicious=kind == "m",
            severity=1.0 if kind == "m" else 0.0,
            attack_type="worm" if kind == "m" else None,
            timestamp=1_700_000_000_000 + step,
            artifact_sha256="ab" * 32,
        )
        for n, kind in enumerate(kinds)
        for step in range(windows)
    )


FOUR = make("mbmb")


def test_never_acting_suffers_everything() -> None:
    got = metrics(simulate(policies.never_act, FOUR), FOUR.malicious)
    assert got == {
        "utility": pytest.approx(-0.05 * (1 + GAMMA) / 2),
        "containment": 0.0,
        "benign_interruption": 0.0,
        "time_to_containment_s": None,
        "damage_prevented": pytest.approx(0.0),
        "review_load": 0.0,
        "containment_at_1pct": 0.0,
    }


def test_always_terminating_interrupts_everybody() -> None:
    got = metrics(simulate(policies.always_terminate, FOUR), FOUR.malicious)
    assert got == {
        "utility": pytest.approx((-0.5 - 8.0) / 2),
        "containment": 1.0,
        "benign_interruption": 1.0,
        "time_to_containment_s": 2.0,
        "damage_prevented": pytest.approx(2 / 3),
        "review_load": 0.0,
        "containment_at_1pct": 0.0,
    }


def test_the_clairvoyant_is_the_bound() -> None:
    got = metrics(simulate(policies.clairvoyant, FOUR), FOUR.malicious)
    assert (got["utility"], got["containment"], got["benign_interruption"]) == (0.0, 1.0, 0.0)
    assert got["containment_at_1pct"] == 1.0


def test_reviewing_counts_as_containment_and_as_load() -> None:
    def review(replay: LockstepReplay) -> tuple[evaluate.Ints, evaluate.Floats]:
        late = replay.time == 1
        action = Action.REQUEST_HUMAN_REVIEW if late else Action.INCREASE_ISOLATION
        count = len(replay.active)
        return np.full(count, action, dtype=np.int64), np.zeros(count)

    got = metrics(simulate(review, FOUR), FOUR.malicious)
    assert (got["containment"], got["review_load"], got["benign_interruption"]) == (1.0, 1.0, 0.0)
    assert got["time_to_containment_s"] == 4.0
    bad = -0.05 * 0.6 - 0.02 - GAMMA * 0.9
    good = -0.02 - GAMMA * 1.0
    assert got["utility"] == pytest.approx((bad + good) / 2)
    assert got["damage_prevented"] == pytest.approx(1 - (0.05 + 0.05 * 0.6) / 0.15)


def test_without_one_of_the_classes_a_figure_is_none_not_zero() -> None:
    benign = make("bb")
    got = metrics(simulate(policies.never_act, benign), benign.malicious)
    missing = ("containment", "time_to_containment_s", "damage_prevented", "containment_at_1pct")
    assert [got[name] for name in missing] == [None] * 4
    nobody = benign.select(np.empty(0, dtype=np.int64))
    assert (
        evaluate.evaluate_policies(policies.never_act, nobody, {})["policies"]["drl"]["utility"]
        is None
    )


@pytest.mark.parametrize(
    ("benign", "malicious", "expected"),
    [
        ([0.0] * 50, [1.0, -1.0], 0.5),  # fewer than 100: none may be interrupted
        ([0.0] * 49 + [5.0], [1.0, 6.0], 0.5),
        ([0.0] * 99 + [5.0], [1.0, -1.0], 0.5),  # one of 100 may
        ([0.0] * 98 + [5.0, 5.0], [1.0, 5.0, 6.0, 6.0], 0.5),  # a tie: both or none
        ([0.0] * 199 + [9.0], [0.0, 1.0], 0.5),
        ([1.0] * 100, [1.0, 1.0], 0.0),  # what equals the margin is not above it
    ],
)
def test_containment_at_1pct_by_hand(
    benign: list[float], malicious: list[float], expected: float
) -> None:
    score = np.array([*benign, *malicious])
    kind = np.array([False] * len(benign) + [True] * len(malicious))
    assert containment_at(score, kind, 0.01) == expected


@settings(max_examples=150, deadline=None)
@given(
    benign=st.lists(st.integers(0, 5), min_size=1, max_size=400),
    malicious=st.lists(st.integers(0, 5), min_size=1, max_size=20),
)
def test_containment_at_1pct_never_spends_more(benign: list[int], malicious: list[int]) -> None:
    score = np.array([*benign, *malicious], dtype=np.float64)
    kind = np.array([False] * len(benign) + [True] * len(malicious))
    got = containment_at(score, kind, 0.01)
    within = [m for m in (*range(6), -1) if np.mean(np.array(benign) > m) <= 0.01]
    assert got == max(np.mean(np.array(malicious) > m) for m in within)


@pytest.mark.parametrize(
    ("hits", "of", "interval"),
    [
        (0, 10, (0.0, 0.3085)),
        (1, 10, (0.0025, 0.4450)),
        (5, 10, (0.1871, 0.8129)),
        (10, 10, (0.6915, 1.0)),
        (3, 100, (0.0062, 0.0852)),
    ],
)
def test_the_interval_of_interruption_is_clopper_and_pearsons(
    hits: int, of: int, interval: tuple[float, float]
) -> None:
    """Against published tables."""
    episodes = make("b" * of, windows=1)
    nothing = np.zeros(of)
    final = np.where(np.arange(of) < hits, int(Action.TERMINATE_PROCESS), -1)
    played = Rollouts(nothing, final, nothing, nothing, nothing, nothing)
    got = evaluate.intervals(played, episodes)["benign_interruption"]
    assert got == pytest.approx(interval, abs=1e-4)


def test_the_bootstrap_is_over_sessions_and_silent_with_one() -> None:
    assert bootstrap.session_bootstrap(np.arange(5.0), ["a"] * 5) is None
    values = np.array([0.0] * 50 + [1.0] * 50)
    low, high = bootstrap.session_bootstrap(values, ["a"] * 50 + ["b"] * 50) or (0, 0)
    assert (low, high) == (0.0, 1.0), "two sessions tell little, however many episodes they hold"
    many = [str(n) for n in range(100)]
    low, high = bootstrap.session_bootstrap(values, many) or (0, 0)
    assert 0.35 < low < 0.5 < high < 0.65
    assert bootstrap.session_bootstrap(values, many, 1) == bootstrap.session_bootstrap(
        values, many, 1
    )


def test_the_table_holds_every_policy_with_intervals(episodes: Episodes) -> None:
    baselines = tune(trajectories.rows_of(episodes, np.random.default_rng(0), DEFAULT_COSTS))
    network = seeded_network([16], 0)
    table = evaluate.evaluate_policies(policies.network_policy(network), episodes, baselines)
    names = {"never_act", "always_terminate", "random", "drl", "clairvoyant", *baselines}
    assert set(table["policies"]) == set(table["intervals"]) == names
    assert set(table["advantage"]) == names - {"drl"}
    assert (table["episodes"], table["sessions"]) == (24, 20)
    best = table["policies"]["clairvoyant"]["utility"]
    assert all(row["utility"] <= best for row in table["policies"].values())
    again = evaluate.evaluate_policies(policies.network_policy(network), episodes, baselines)
    assert again == table


@pytest.mark.property(13)
def test_the_served_graph_plays_as_the_trained_network(episodes: Episodes) -> None:
    network: QNetwork = seeded_network([16], 2)
    session = onnx_export.session(onnx_export.export(network))
    one = simulate(policies.network_policy(network), episodes)
    two = simulate(policies.onnx_policy(session), episodes)
    np.testing.assert_array_equal(one.final_action, two.final_action)
    np.testing.assert_allclose(one.returns, two.returns)
    np.testing.assert_allclose(one.score, two.score, atol=1e-5)


def test_a_random_policy_takes_no_masked_action(episodes: Episodes) -> None:
    policy = policies.random_policy(0)
    for _ in range(5):  # a masked action would raise
        simulate(policy, episodes)


def test_a_pattern_is_kept_of_every_contained_malicious_episode() -> None:
    episodes = make("mbm")
    network = seeded_network([8], 0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        list(network.parameters())[-1][Action.QUARANTINE_FILE] = 2.0
    found = attack_patterns.patterns(network, episodes, "v1")
    assert [p.episode_id for p in found] == ["e000", "e002"]
    for pattern in found:
        assert (pattern.action, pattern.step, pattern.reward) == (3, 0, 0.0)
        assert pattern.confidence == 1.0, "so glad of quarantine is only who is sure of malice"
        assert (pattern.attack_type, len(pattern.features)) == ("worm", 30)
        assert pattern.time.year == 2023
        assert pattern.metadata["action"] == "quarantine_file"


def test_every_figure_has_an_interval_that_holds_it(episodes: Episodes) -> None:
    table = evaluate.evaluate_policies(
        policies.network_policy(seeded_network([16], 0)), episodes, {}
    )
    for name, figures in table["policies"].items():
        for key, value in figures.items():
            interval = table["intervals"][name][key]
            assert (interval is None) == (value is None), (name, key)
            if interval is not None:
                assert interval[0] - 1e-9 <= value <= interval[1] + 1e-9, (name, key)


@settings(max_examples=50, deadline=None)
@given(
    benign=st.lists(st.integers(0, 5), min_size=2, max_size=150),
    malicious=st.lists(st.integers(0, 5), min_size=2, max_size=20),
    seed=st.integers(0, 1000),
)
def test_the_interval_of_containment_at_1pct_is_that_of_resampled_episodes(
    benign: list[int], malicious: list[int], seed: int
) -> None:
    """With every episode its own session, against drawing the episodes themselves."""
    score = np.array([*benign, *malicious], dtype=np.float64)
    kind = np.arange(len(score)) >= len(benign)
    sessions = SessionBootstrap([f"s{n:04d}" for n in range(len(score))], seed)
    found = []
    for counts in sessions.counts:
        drawn = np.repeat(np.arange(len(score)), counts)
        value = containment_at(score[drawn], kind[drawn], 0.01)
        found += [] if value is None else [value]
    want = np.quantile(found, [0.025, 0.975])
    assert sessions.containment_at(score, kind, 0.01) == pytest.approx(want)


def test_groups_cut_the_table_by_attack_type_and_by_source(episodes: Episodes) -> None:
    table = evaluate.evaluate_policies(policies.never_act, episodes, {})
    groups = table["per_attack_type"]
    assert set(groups) == set(episodes.attack_type)
    assert sum(one["episodes"] for one in groups.values()) == len(episodes)
    mean = sum(one["episodes"] * one["policies"]["drl"]["utility"] for one in groups.values())
    assert mean / len(episodes) == pytest.approx(table["policies"]["drl"]["utility"])
    assert set(table["per_source"]) == {sandbox for sandbox, _ in episodes.names}
    assert [one["session"] for one in table["held_out_sessions"]] == sorted(set(episodes.session))
    assert sum(one["episodes"] for one in table["held_out_sessions"]) == len(episodes)


def test_the_cost_curve_is_that_of_simulated_margins(episodes: Episodes) -> None:
    network = policies.network_policy(seeded_network([16], 0))
    curve = evaluate.evaluate_policies(network, episodes, {})["cost_curve"]["drl"]
    for margin, utility, containment, interruption in list(zip(*curve.values(), strict=True))[::9]:

        def swept(replay: LockstepReplay) -> tuple[evaluate.Ints, evaluate.Floats]:
            _, score = network(replay)
            fired = score > (np.inf if margin is None else margin)  # noqa: B023
            return np.where(fired, Action.QUARANTINE_FILE, 0).astype(np.int64), score

        got = metrics(simulate(swept, episodes), episodes.malicious)
        assert got["utility"] == pytest.approx(utility)
        assert got["containment"] == pytest.approx(containment)
        assert got["benign_interruption"] == pytest.approx(interruption)


def test_calibration_by_hand() -> None:
    score = np.array([0.0, 0.0, 50.0, -50.0])
    got = curves.calibration(curves.logistic(score), np.array([True, False, True, True]))
    assert got["brier"] == pytest.approx((0.25 + 0.25 + 0 + 1) / 4)
    assert got["ece"] == pytest.approx(0.25)
    assert [(b["low"], b["episodes"], b["malicious"]) for b in got["bins"]] == [
        (0.0, 1, 1.0),
        (0.5, 2, 0.5),
        (0.9, 1, 1.0),
    ]


def test_q_values_speak_of_the_posterior_that_made_them() -> None:
    belief = np.linspace(0, 1, 11)
    q = np.zeros((11, 5))
    q[:, Action.QUARANTINE_FILE] = -DEFAULT_COSTS.interrupt_quarantine * (1 - belief)
    np.testing.assert_allclose(curves.implied(q, DEFAULT_COSTS), belief, atol=1e-12)


@pytest.mark.parametrize(
    ("kinds", "sessions", "told"),
    [
        ("mm", 2, "no benign episode"),
        ("bb", 2, "no malicious episode"),
        ("mb", 2, "one malicious session only (s0)"),
        ("mb" * 3, 6, "3 benign episodes"),
        ("mb" * 3, 6, "never measured: file_read_count"),
    ],
)
def test_what_episodes_cannot_tell_is_said(kinds: str, sessions: int, told: str) -> None:
    assert any(told in note for note in evaluate.notes(make(kinds, sessions)))
