"""The algorithm registry: name in configuration, checkpoint and manifest -> config class."""

from drl_assets.learning.learners.base import AlgorithmConfig
from drl_assets.learning.learners.cross_validated_q import CrossValidatedQConfig
from drl_assets.learning.learners.dqn import DQNConfig

ALGORITHMS: dict[str, type[AlgorithmConfig]] = {
    "default": CrossValidatedQConfig,
    "report": DQNConfig,
}


class UnknownAlgorithmError(ValueError):
    """A name that no registered algorithm has."""


def algorithm(name: str) -> type[AlgorithmConfig]:
    """The config class of an algorithm.

    Raises:
        UnknownAlgorithmError: no algorithm has this name.
    """
    if name not in ALGORITHMS:
        known = ", ".join(sorted(ALGORITHMS))
        raise UnknownAlgorithmError(f"no algorithm is called {name!r}; known are: {known}")
    return ALGORITHMS[name]
