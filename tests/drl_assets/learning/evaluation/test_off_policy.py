"""Off-policy estimates on logs whose truth is known: a chain of windows, a random behaviour."""

import numpy as np
import polars as pl
import pytest

from drl_assets.learning.data.environment import LockstepReplay
from drl_assets.learning.data.episodes import Floats
from drl_assets.learning.evaluation.off_policy import Log, estimate, estimates
from drl_assets.tables import transforms
from drl_core.policy.actions import Action
from drl_core.telemetry.event import Event, Intervention, Outcome

GAMMA, WINDOWS = 0.99, 4
BEHAVIOUR = np.array([0.6, 0.0, 0.1, 0.2, 0.1])


def logged(count: int, seed: int, q: Floats, malicious: float = 0.5) -> tuple[Log, list[str]]:
    """Episodes of up to WINDOWS windows; half malicious, a noisy bit a window tells which."""
    rng = np.random.default_rng(seed)
    starts, rows = [], []
    for _ in range(count):
        starts.append(len(rows))
        bad = rng.random() < malicious
        for time in range(WINDOWS):
            bit = int(rng.random() < (0.8 if bad else 0.2))
            action = int(rng.choice(5, p=BEHAVIOUR))
            rows.append((action, BEHAVIOUR[action], reward(bad, action, time), q[time, bit]))
            if action >= 2:
                break
    action, propensity, received, values = (list(column) for column in zip(*rows, strict=True))
    log = Log(
        np.array(starts),
        np.array(action),
        np.array(propensity),
        np.array(received),
        np.stack(values),
    )
    return log, [f"s{n // 20}" for n in range(count)]


def reward(bad: bool, action: int, time: int) -> float:
    watching = -1.0 if bad and time < WINDOWS - 1 else 0.0
    return (watching, watching, -0.5 if bad else -8.0, 0.0 if bad else -6.0, -0.9)[action]


def truth(q: Floats) -> float:
    """The greedy policy's value, by enumerating classes and bits."""
    total = 0.0
    for bad in (True, False):
        p = 0.8 if bad else 0.2
        alive = 0.5
        for time in range(WINDOWS):
            going = 0.0
            for bit, chance in ((1, p), (0, 1 - p)):
                action = int(q[time, bit].argmax())
                total += alive * chance * GAMMA**time * reward(bad, action, time)
                going += chance * (action < 2)
            alive *= going
    return total


def values(seed: int) -> Floats:
    """Made-up Q-values [WINDOWS, 2, 5]: quarantine on an up bit, watch on a down one."""
    q = np.random.default_rng(seed).normal(-1.0, 0.2, (WINDOWS, 2, 5))
    q[:, 1, Action.QUARANTINE_FILE] = q[:, 0, Action.CONTINUE_MONITORING] = -0.3
    return q


@pytest.mark.parametrize("seed", range(5))
def test_every_estimator_finds_the_value_of_a_policy_that_was_not_followed(seed: int) -> None:
    q = values(seed)
    log, session = logged(6000, seed, q)
    found = estimates(log, session, seed)
    assert found["logged"] < truth(q) - 0.2, "the log's own policy is another one"
    for name in ("importance_sampling", "weighted", "doubly_robust"):
        low, high = found["intervals"][name]
        slack = (high - low) / 2  # twice the interval, so that chance does not decide
        assert low - slack < truth(q) < high + slack, name
        assert low < found[name] < high
        assert high - low < 1.0
    assert 0 < found["effective_sample_size"] < found["episodes"]
    assert found["identifiable"]


def test_where_nothing_is_random_and_q_is_right_the_doubly_robust_estimate_is_exact() -> None:
    q, following = np.empty((WINDOWS, 2, 5)), 0.0
    for time in reversed(range(WINDOWS)):
        for action in range(5):
            q[time, :, action] = reward(True, action, time) + GAMMA * following * (action < 2)
        q[time, :, Action.QUARANTINE_FILE] = -np.inf  # masked, though the log took it
        following = q[time].max()
    log, session = logged(500, 1, q, malicious=1.0)
    found = estimates(log, session)
    assert found["intervals"]["doubly_robust"] == pytest.approx([following, following])
    low, high = found["intervals"]["importance_sampling"]
    assert high - low > 0.01


def test_an_action_that_the_log_never_took_is_not_identifiable() -> None:
    q = values(0)
    q[:, 1, Action.INCREASE_ISOLATION] = 5.0
    log, session = logged(500, 0, q)
    found = estimates(log, session)
    isolate = found["actions"]["increase_isolation"]
    assert (isolate["logged"], isolate["agreed"], isolate["identifiable"]) == (0, 0, False)
    assert isolate["wanted"] > 0
    assert not found["identifiable"]
    assert found["actions"]["continue_monitoring"]["identifiable"]


def test_nothing_logged_is_nothing_estimated() -> None:
    frame = experiences([(0, None), (1, None)])
    found = estimate(frame, always(Action.CONTINUE_MONITORING))
    assert (found["decisions"], found["episodes"], found["left_out"]) == (0, 0, 0)
    assert found["doubly_robust"] is found["weighted"] is found["importance_sampling"] is None
    empty = frame.filter(pl.col("is_malicious").is_null())
    assert estimate(empty, always(Action.CONTINUE_MONITORING))["decisions"] == 0


def test_a_log_is_read_from_experiences() -> None:
    watch = Intervention(action=0, propensity=0.5, outcome=Outcome.APPLIED)
    stop = Intervention(action=3, propensity=0.25, outcome=Outcome.APPLIED)
    failed = Intervention(action=3, propensity=0.25, outcome=Outcome.FAILED)
    frame = experiences([(0, watch), (0, stop), (0, None), (1, watch), (1, None), (2, failed)])
    found = estimate(frame, always(Action.CONTINUE_MONITORING))
    assert (found["decisions"], found["episodes"], found["left_out"]) == (3, 2, 1)
    damage = frame["damage"][1]
    assert found["logged"] == pytest.approx((-damage + GAMMA * 0.0 + 0.0) / 2)
    assert found["importance_sampling"] == pytest.approx(-damage / 0.5 / 2)
    assert found["actions"]["continue_monitoring"]["agreed"] == 1
    assert found["actions"]["quarantine_file"]["logged"] == 2


def always(action: Action):  # type: ignore[no-untyped-def]
    def q_values(replay: LockstepReplay) -> Floats:
        return np.tile(np.arange(5) == action, (len(replay.active), 1)).astype(np.float64)

    return q_values


def experiences(rows: list[tuple[int, Intervention | None]]) -> pl.DataFrame:
    """One malicious window a row: (episode, what was done)."""
    step: dict[int, int] = {}
    events = []
    for episode, done in rows:
        step[episode] = step.get(episode, -1) + 1
        events.append(
            Event(
                episode_id=episode,
                step=step[episode],
                syscall_count=100,
                is_malicious=True,
                severity=1.0,
                intervention=done,
            )
        )
    return transforms.experiences_of([events])
