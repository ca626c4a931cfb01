"""The stack: its hand-written gradient, clipping, AdamW and moving average are autograd's."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from drl_assets.learning.learners.mlp_ensemble import MLPEnsemble
from drl_assets.learning.learners.networks import QNetwork, seeded_network

HIDDEN = [24, 16]
MEMBERS = pytest.mark.parametrize("members", [1, 3])
FORMS = pytest.mark.parametrize("autograd", [False, True], ids=["by hand", "autograd"])


def seeded(
    hidden: list[int], seed: int, members: int = 1, batch: int = 64, **rest: Any
) -> MLPEnsemble:
    """A stack whose member k begins as `seeded_network(hidden, seed + k)`."""
    return MLPEnsemble.of([seeded_network(hidden, seed + k) for k in range(members)], batch, **rest)


def batches(members: int, count: int, size: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
    """Features and what to regress on; every tenth batch is far off, so that clipping happens."""
    source = torch.Generator().manual_seed(0)
    for step in range(count):
        x = torch.randn(members, size, 30, generator=source, dtype=torch.float64)
        goal = torch.randn(members, size, 5, generator=source, dtype=torch.float64)
        yield x, goal * (100.0 if step % 10 == 0 else 1.0) + x[..., :5]


class Plain:
    """One member as torch's documentation would have it trained."""

    def __init__(self, seed: int, decay: float) -> None:
        self.network = seeded_network(HIDDEN, seed).double()
        named = dict(self.network.named_parameters())
        groups = [
            {
                "params": [p for n, p in named.items() if n.endswith("weight")],
                "weight_decay": decay,
            },
            {"params": [p for n, p in named.items() if n.endswith("bias")], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups)
        self.average = [p.detach().clone() for p in self.network.parameters()]

    def update(self, x: Tensor, goal: Tensor, rate: float) -> float:
        """The gradient's norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        nn.functional.mse_loss(self.network(x), goal).backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 10.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.network.parameters()), 0.01)
        return float(norm)


@FORMS
@MEMBERS
def test_thousands_of_updates_are_those_of_torchs_autograd_and_adamw(
    members: int, autograd: bool
) -> None:
    count = 300 if autograd else 3000 // members
    decay = torch.tensor([0.01, 0.3, 0.0][:members], dtype=torch.float64)
    stack = seeded(HIDDEN, 7, members, 32, dtype=torch.float64, autograd=autograd)
    average = stack.copy()
    plain = [Plain(7 + k, float(decay[k])) for k in range(members)]
    clipped = 0
    for step, (x, goal) in enumerate(batches(members, count)):
        rate = 1e-3 * (1 - step / count) + 1e-5
        stack.backward((stack.forward(x) - goal) * (2 / goal[0].numel()))
        norms = stack.clip(10.0)
        stack.step(rate, decay)
        stack.average_into(average, 0.99)
        expected = [p.update(x[k], goal[k], rate) for k, p in enumerate(plain)]
        torch.testing.assert_close(norms.tolist(), expected, rtol=1e-10, atol=0)
        clipped += max(expected) > 10.0
    assert 0 < clipped < count
    for k, member in enumerate(plain):
        for got, wanted in (
            (stack.state_dict(k), list(member.network.parameters())),
            (stack.state_dict(k, average), member.average),
        ):
            difference = max(
                float((a - b.detach()).abs().max())
                for a, b in zip(got.values(), wanted, strict=True)
            )
            assert difference < 1e-12


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.integers(1, 20), min_size=2, max_size=5),
    members=st.integers(1, 4),
    batch=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_the_gradient_is_autograds_at_any_depth_and_width(
    widths: list[int], members: int, batch: int, seed: int
) -> None:
    source = torch.Generator().manual_seed(seed)
    stack = MLPEnsemble(widths, members, batch, dtype=torch.float64)
    other = MLPEnsemble(widths, members, batch, dtype=torch.float64, autograd=True)
    stack.parameters.flat.copy_(
        torch.randn(stack.parameters.flat.shape, generator=source, dtype=torch.float64)
    )
    other.restore(stack.dump())
    x = torch.randn(members, batch, widths[0], generator=source, dtype=torch.float64)
    torch.testing.assert_close(stack.forward(x), other.forward(x), rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(stack.predict(x), other.forward(x), rtol=1e-12, atol=1e-10)
    d_out = torch.randn(members, batch, widths[-1], generator=source, dtype=torch.float64)
    stack.backward(d_out)
    other.backward(d_out)
    torch.testing.assert_close(stack.gradient.flat, other.gradient.flat, rtol=1e-12, atol=1e-9)


@MEMBERS
def test_members_are_q_networks_there_and_back(members: int) -> None:
    stack = seeded(HIDDEN, 3, members, 4)
    x = torch.randn(11, 30)
    together = stack.predict(x)
    assert together.shape == (members, 11, 5)
    for k in range(members):
        network = seeded_network(HIDDEN, 3 + k)
        torch.testing.assert_close(together[k], network(x))
        assert all(torch.equal(v, network.state_dict()[n]) for n, v in stack.state_dict(k).items())
        again = QNetwork(HIDDEN)
        again.load_state_dict(stack.state_dict(k))
        torch.testing.assert_close(together[k], again(x))
    with pytest.raises(ValueError, match=r"widths \[30, 24, 16, 5\]"):
        stack.load_state_dict(seeded_network([8, 8], 0).state_dict())


def test_the_same_rows_for_all_members_are_a_batch_too() -> None:
    stack, x = seeded(HIDDEN, 0, 3, 6), torch.randn(6, 30)
    torch.testing.assert_close(stack.forward(x), stack.predict(x))
    d_out = torch.randn(3, 6, 5)
    stack.backward(d_out)
    shared = stack.gradient.flat.clone()
    stack.forward(x.repeat(3, 1, 1))
    stack.backward(d_out)
    torch.testing.assert_close(stack.gradient.flat, shared)


def test_many_rows_are_predicted_in_blocks_as_if_at_once() -> None:
    stack, x = seeded(HIDDEN, 0), torch.randn(9001, 30)
    torch.testing.assert_close(stack.predict(x)[0], seeded_network(HIDDEN, 0)(x))


def test_members_do_not_touch_one_another() -> None:
    alone, both = seeded(HIDDEN, 1, 1, 8), seeded(HIDDEN, 0, 2, 8)
    for _ in range(20):
        x, goal = torch.randn(1, 8, 30), torch.randn(1, 8, 5)
        alone.backward(alone.forward(x) - goal)
        both.backward(both.forward(x[0]) - torch.stack([goal[0] * 1e3, goal[0]]))
        alone.clip(1.0)
        both.clip(1.0)
        alone.step(1e-3, 0.01)
        both.step(1e-3, 0.01)
    assert torch.equal(alone.parameters.flat[0], both.parameters.flat[1])


def test_a_restored_stack_goes_on_bit_for_bit() -> None:
    def train(stack: MLPEnsemble, steps: range) -> None:
        for step in steps:
            source = torch.Generator().manual_seed(step)
            stack.backward(stack.forward(torch.randn(1, 8, 30, generator=source)) - 1.0)
            stack.clip(1.0)
            stack.step(1e-3, 0.01)

    whole, first, second = (seeded(HIDDEN, s, 1, 8) for s in (0, 0, 1))
    train(whole, range(30))
    train(first, range(12))
    second.restore({name: tensor.clone() for name, tensor in first.dump().items()})
    train(second, range(12, 30))
    assert all(torch.equal(a, whole.dump()[name]) for name, a in second.dump().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_learns_the_same_within_bfloat16() -> None:
    slow, fast = seeded(HIDDEN, 0, 2, 32), seeded(HIDDEN, 0, 2, 32, device="cuda")
    source = torch.Generator().manual_seed(0)
    for _ in range(200):
        x = torch.randn(2, 32, 30, generator=source)
        for stack in (slow, fast):
            inputs = x.to(stack.device)
            stack.backward((stack.forward(inputs) - inputs[..., :5]) * (2 / 160))
            stack.clip(10.0)
            stack.step(1e-3)
    x = torch.randn(500, 30, generator=source)
    error = (fast.predict(x.cuda()).cpu() - slow.predict(x)).abs().mean()
    assert float(error) < 0.05
