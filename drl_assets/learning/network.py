"""The Q-network: 30 features -> 256 -> 256 -> 5 Q-values, ReLU, Xavier-initialised."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from drl_core.actions import ACTION_COUNT
from drl_core.features import FEATURE_COUNT


class QNetwork(nn.Module):
    """Multi-layer perceptron over the 30 features."""

    def __init__(self, hidden_layers: Sequence[int] = (256, 256)) -> None:
        super().__init__()
        widths = [FEATURE_COUNT, *hidden_layers]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        layers.append(nn.Linear(widths[-1], ACTION_COUNT))
        self.layers = nn.Sequential(*layers)
        for module in self.layers:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Q-values [N, 5] of features [N, 30]."""
        result: Tensor = self.layers(features)
        return result


def choose_device(name: str) -> torch.device:
    """`auto` takes the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def seeded_network(hidden_layers: Sequence[int], seed: int) -> QNetwork:
    """A network whose initial weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return QNetwork(hidden_layers)
