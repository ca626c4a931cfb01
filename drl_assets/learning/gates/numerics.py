"""Gates on numbers alone: weights and losses are finite, the exported graph is the network."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from drl_assets.learning.gates.verdicts import Verdict

if TYPE_CHECKING:
    import torch

Q_ERROR = 1e-5
"""Greatest difference of Q-values between the graph and the network, relative to max(1, |Q|)."""
FEATURE_ERROR = 1e-6


def finite_and_bounded(
    weights: "Mapping[str, torch.Tensor]",
    losses: Sequence[float],
    max_gradient_norm: float,
    clip: float,
) -> Verdict:
    """Every weight and loss is finite, and the clipped gradient stayed within its bound."""
    finite_weights = all(bool(tensor.isfinite().all()) for tensor in weights.values())
    finite_losses = all(math.isfinite(loss) for loss in losses)
    steep = max_gradient_norm > clip * (1 + 1e-5)
    wrong = {"weights": not finite_weights, "losses": not finite_losses, "gradient": steep}
    found = [name for name, broken in wrong.items() if broken]
    return Verdict(
        not found,
        f"not finite, or beyond bounds: {', '.join(found)}" if found else "all finite and bounded",
        figures={
            "finite_weights": finite_weights,
            "finite_losses": finite_losses,
            "max_gradient_norm": max_gradient_norm,
            "clip": clip,
        },
    )


def onnx_parity(found: Mapping[str, Any]) -> Verdict:
    """The graph's Q-values and features are the network's, and no best action flips.

    Args:
        found: `q_error`, `feature_error`, `argmax_flips` and `states` of `onnx_export.parity`.
    """
    agree = found["q_error"] <= Q_ERROR and found["feature_error"] <= FEATURE_ERROR
    return Verdict(
        agree and found["argmax_flips"] == 0,
        f"Q-values differ by {found['q_error']:.1e} at most, {found['argmax_flips']} of "
        f"{found['states']} best actions flip",
        figures=dict(found),
    )
