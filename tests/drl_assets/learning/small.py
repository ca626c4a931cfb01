"""What several tests of learning need: small settings, episodes of events, untrained policies."""

from collections.abc import Iterable

import torch

from drl_assets.learning.data.episodes import Episodes, from_experiences
from drl_assets.learning.data.replay_buffer import Columns
from drl_assets.learning.learners.checkpoint import Checkpoint
from drl_assets.learning.learners.networks import PosteriorQNetwork, QNetwork
from drl_assets.tables import transforms
from drl_core.settings import Learning
from drl_core.telemetry.event import Event

SMALL = Learning(
    members=2,
    member_layers=[8],
    gradient_steps=60,
    incremental_steps=30,
    validation_steps=10,
    hidden_layers=[16, 16],
    episodes=12,
    device="cpu",
)
REPORT = Learning(preset="report", hidden_layers=[16, 16], episodes=12, device="cpu")


def episodes_of(events: Iterable[Event]) -> Episodes:
    """Episodes of events, through the same path as everywhere."""
    return from_experiences(transforms.experiences_of([list(events)]))


def saved(network: QNetwork | PosteriorQNetwork, replay: Columns) -> Checkpoint:
    """A checkpoint of a network that nothing has trained."""
    preset, about = "report", {"learning_rate": 1e-3, "gamma": 0.99}
    if isinstance(network, PosteriorQNetwork):
        preset, about["members"] = "default", network.weights[0].shape[0]
        widths = [weight.shape[2] for weight in network.weights]
    else:
        widths = [layer.out_features for layer in network.layers if hasattr(layer, "out_features")]
    return Checkpoint(
        preset=preset,
        seed=0,
        hidden_layers=widths[:-1],
        weights=network.state_dict(),
        replay=replay,
        hyperparameters=about,
        costs_version=1,
        training_date="2026-11-22T12:00:00+00:00",
        training_episodes=1,
        gradient_steps=1,
        losses=[0.5],
        returns=[],
        final_average_reward=-1.0,
        max_gradient_norm=1.0,
        batches=["a"],
    )


def randomised(network: PosteriorQNetwork, seed: int) -> PosteriorQNetwork:
    """The network with every parameter and buffer drawn anew; scales are positive."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.copy_(torch.randn(tensor.shape, generator=source) * 0.3)
            if name in ("scale", "slope"):
                tensor.abs_().add_(0.1)
    return network
