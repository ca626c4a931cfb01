"""Q-networks: features [N, 30] -> Q-values [N, 5].

`QNetwork` is the report's, 30 -> 256 -> 256 -> 5, ReLU, Xavier-initialised. `PosteriorQNetwork` is
the default learner's: an ensemble that estimates the probability that the episode is malicious, and
the Q-values given that it is and that it is not.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from drl_core.policy.actions import ACTION_COUNT
from drl_core.policy.features import FEATURE_COUNT


class QFunction(nn.Module, ABC):
    """What a policy is greedy on."""

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Q-values [N, 5] of features [N, 30]."""


class QNetwork(QFunction):
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


HEADS = 1 + 2 * ACTION_COUNT
"""Outputs of a member: the logit of malice, Q-values if benign, Q-values if malicious."""


class PosteriorQNetwork(QFunction):
    """K perceptrons, averaged; Q(x, a) = p(x) Q(x, a | malicious) + (1 - p(x)) Q(x, a | benign).

    p = sigmoid(slope * logit + offset). The decomposition is exact for the expected return; it lets
    the label, which is known at every recorded step, be learned by its own proper score, and leaves
    two numbers to calibrate on sessions that were left out (Platt 1999).

    Buffers: `mean` and `scale` [30] standardise the features; `slope` and `offset` [].
    """

    mean: Tensor
    scale: Tensor
    slope: Tensor
    offset: Tensor

    def __init__(self, hidden_layers: Sequence[int] = (64, 64), members: int = 4) -> None:
        super().__init__()
        widths = [FEATURE_COUNT, *hidden_layers, HEADS]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.zeros(members, i, o)) for i, o in pairwise(widths)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, o)) for o in widths[1:])
        self.register_buffer("mean", torch.zeros(FEATURE_COUNT))
        self.register_buffer("scale", torch.ones(FEATURE_COUNT))
        self.register_buffer("slope", torch.tensor(1.0))
        self.register_buffer("offset", torch.tensor(0.0))

    def forward(self, features: Tensor) -> Tensor:
        """Q-values [N, 5] of features [N, 30]."""
        return posterior_q(self.heads(features).mean(dim=0), self.slope, self.offset)

    def heads(self, features: Tensor) -> Tensor:
        """Each member's outputs for features [N, 30], [K, N, 11]."""
        h = (features - self.mean) / self.scale
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = (h.relu() if i else h) @ weight + bias
        return h


def posterior_q(heads: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """Q-values [..., 5] of a member's outputs [..., 11]."""
    malice = torch.sigmoid(slope * heads[..., :1] + offset)
    benign, malicious = heads[..., 1 : 1 + ACTION_COUNT], heads[..., 1 + ACTION_COUNT :]
    result: Tensor = malice * malicious + (1 - malice) * benign
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
