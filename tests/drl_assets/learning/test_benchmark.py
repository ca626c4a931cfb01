"""The training benchmark: its environment is the oracle's, its contenders do what they are for."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from benchmarks.training import peers
from benchmarks.training.regret import RecordedTrajectories
from drl_assets.learning.gates.oracle_mdps import G2, WINDOWS


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_the_environment_of_the_regret_is_a_gymnasium_one() -> None:
    check_env(RecordedTrajectories(G2.sample(20, 0)), skip_render_check=True)


def test_stepping_the_environment_pays_what_the_rows_say() -> None:
    rows, rng = G2.sample(30, 0), np.random.default_rng(0)
    env, lengths = RecordedTrajectories(rows), set()
    for seed in range(40):
        observation, _ = env.reset(seed=seed)
        row = int(np.flatnonzero((rows["state"][:, 0] == observation).all(axis=1))[0])
        assert row % WINDOWS == 0
        for step in range(WINDOWS):
            action = rng.choice(5, p=[0.5, 0.44, 0.02, 0.02, 0.02])
            observation, reward, terminated, truncated, _ = env.step(action)
            assert reward == pytest.approx(rows["rewards"][row + step, 0, action])
            assert (terminated, truncated) == (action > 1 or step == WINDOWS - 1, False)
            if terminated:
                lengths.add(step + 1)
                break
            np.testing.assert_array_equal(observation, rows["state"][row + step + 1, 0])
    assert max(lengths) == WINDOWS
    assert min(lengths) < WINDOWS


@pytest.mark.parametrize("name", ["ours", "floor", "ours, 1 a call"])
def test_contenders_that_need_no_peer_run(name: str) -> None:
    update, sample = peers.CONTENDERS[name][1](peers.transitions())
    update(3)
    assert (sample is None) == (name == "floor")
    if sample is not None:
        sample(2)
