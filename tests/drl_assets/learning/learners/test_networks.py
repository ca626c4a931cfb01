"""The ensemble: its formula in numpy, the law of total expectation, its state there and back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_assets.learning.learners.networks import HEADS, PosteriorQNetwork, posterior_q
from drl_core.policy.actions import ACTION_COUNT
from tests.drl_assets.learning.small import randomised, saved

numbers = st.floats(-20, 20, width=32)


@settings(max_examples=100, deadline=None)
@given(
    heads=st.lists(st.lists(numbers, min_size=HEADS, max_size=HEADS), min_size=1, max_size=4),
    slope=st.floats(0.02, 10),
    offset=st.floats(-20, 20),
)
def test_q_is_the_expectation_over_the_label(
    heads: list[list[float]], slope: float, offset: float
) -> None:
    """Law of total expectation: sum over the two labels of P(label) E[return | label]."""
    table = torch.tensor(heads, dtype=torch.float64)
    q = posterior_q(table, torch.tensor(slope), torch.tensor(offset)).numpy()
    for row, got in zip(table.numpy(), q, strict=True):
        logit = np.float64(np.float32(slope)) * row[0] + np.float64(np.float32(offset))
        malice = 1 / (1 + np.exp(-logit))
        chances = {0: 1 - malice, 1: malice}
        expected = sum(
            chances[label] * row[1 + label * ACTION_COUNT :][:ACTION_COUNT] for label in (0, 1)
        )
        np.testing.assert_allclose(got, expected, atol=1e-9)
        assert (got <= np.maximum(row[1:6], row[6:]) + 1e-9).all()
        assert (got >= np.minimum(row[1:6], row[6:]) - 1e-9).all()


@settings(max_examples=100, deadline=None)
@given(
    layers=st.lists(st.integers(1, 9), min_size=0, max_size=3),
    members=st.integers(1, 4),
    rows=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_the_ensembles_formula_is_numpys(
    layers: list[int], members: int, rows: int, seed: int
) -> None:
    network = randomised(PosteriorQNetwork(layers, members), seed)
    state = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}
    x = np.random.default_rng(seed).random((rows, 30)).astype(np.float32)
    heads = np.zeros((rows, HEADS))
    for k in range(members):
        h = (x - state["mean"]) / state["scale"]
        for i in range(len(layers) + 1):
            h = np.maximum(h, 0) if i else h
            h = h @ state[f"weights.{i}"][k] + state[f"biases.{i}"][k]
        heads += h / members
    malice = 1 / (1 + np.exp(-(state["slope"] * heads[:, :1] + state["offset"])))
    expected = malice * heads[:, 6:] + (1 - malice) * heads[:, 1:6]
    with torch.no_grad():
        q = network(torch.from_numpy(x))
    np.testing.assert_allclose(q.numpy(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("members", [1, 3])
def test_the_state_of_an_ensemble_is_read_back(members: int) -> None:
    network = randomised(PosteriorQNetwork([8, 4], members), 2)
    again = saved(network, {}).network()
    assert isinstance(again, PosteriorQNetwork)
    assert {"mean", "scale", "slope", "offset"} < network.state_dict().keys()
    x = torch.rand(7, 30)
    assert torch.equal(again(x), network(x))
    with pytest.raises(RuntimeError, match="size mismatch"):
        PosteriorQNetwork([8, 4], members + 1).load_state_dict(network.state_dict())
