"""What several tests of learning need: small settings, episodes of events, a checkpoint."""

from collections.abc import Iterable

from drl_assets import pipeline
from drl_assets.learning.checkpoint import Checkpoint
from drl_assets.learning.episodes import Episodes, from_experiences
from drl_assets.learning.network import QNetwork
from drl_assets.learning.replay import Columns
from drl_core.settings import Learning
from drl_core.telemetry import Event

SMALL = Learning(hidden_layers=[16, 16], gradient_steps=60, episodes=12, device="cpu")
REPORT = Learning(preset="report", hidden_layers=[16, 16], episodes=12, device="cpu")


def episodes_of(events: Iterable[Event]) -> Episodes:
    """Episodes of events, through the same path as everywhere."""
    return from_experiences(pipeline.experiences_of([list(events)]))


def saved(network: QNetwork, replay: Columns) -> Checkpoint:
    """A checkpoint of a network that nothing has trained."""
    widths = [layer.out_features for layer in network.layers if hasattr(layer, "out_features")]
    return Checkpoint(
        preset="default",
        seed=0,
        hidden_layers=widths[:-1],
        weights=network.state_dict(),
        replay=replay,
        hyperparameters={"learning_rate": 1e-3, "gamma": 0.99},
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
