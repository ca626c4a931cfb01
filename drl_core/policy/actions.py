"""The action space: five actions, the terminal ones, and the action mask by isolation level."""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

MAX_ISOLATION_LEVEL = 3
"""1 = no network, 2 = file system read-only, 3 = frozen CPU share."""


class Action(IntEnum):
    """An index into the policy's five Q-values."""

    CONTINUE_MONITORING = 0
    INCREASE_ISOLATION = 1
    TERMINATE_PROCESS = 2
    QUARANTINE_FILE = 3
    REQUEST_HUMAN_REVIEW = 4

    @property
    def label(self) -> str:
        """The name used in JSON and in the console, such as `continue_monitoring`."""
        return self.name.lower()


ACTION_COUNT = len(Action)

CONTAINING = (Action.TERMINATE_PROCESS, Action.QUARANTINE_FILE)
"""Actions that end the episode by stopping the artefact, without a review."""

TERMINAL = (*CONTAINING, Action.REQUEST_HUMAN_REVIEW)
"""Actions after which the recorded continuation no longer happens."""


def allowed(isolation_level: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """The action mask at an isolation level.

    Args:
        isolation_level: integers 0..3, shape [...].

    Returns:
        Booleans, shape [..., 5]; `increase_isolation` is masked at level 3.
    """
    level = np.asarray(isolation_level)
    mask = np.ones((*level.shape, ACTION_COUNT), dtype=np.bool_)
    mask[..., Action.INCREASE_ISOLATION] = level < MAX_ISOLATION_LEVEL
    return mask
