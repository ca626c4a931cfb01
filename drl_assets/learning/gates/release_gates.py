"""The release gates, as a table: what a challenger must show before it is published.

A `ReleaseGate` names the asset that it judges and the pure function that judges it. The Dagster
asset checks are made from this table (`defs.gate_results.check_of`), and a release is known to be
complete by it, so this module imports nothing heavy. A new gate is a judge in one of the modules
beside this one and an entry in `GATES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from drl_assets.learning.gates import evaluation_gates, numerics
from drl_assets.learning.gates.evaluation_gates import Result
from drl_assets.learning.gates.verdicts import Verdict
from drl_core.settings import Gates

if TYPE_CHECKING:
    import polars as pl

    from drl_assets.learning.learners.checkpoint import Checkpoint


class Evidence(Protocol):
    """Figures of a challenger; each is fetched only when a gate reads it."""

    @property
    def bounds(self) -> Gates:
        """The gates' section of the configuration."""
        ...

    @property
    def checkpoint(self) -> "Checkpoint":
        """The challenger."""
        ...

    @property
    def champion(self) -> "Checkpoint | None":
        """What is released now, None before the first release."""
        ...

    @property
    def new_rows(self) -> "pl.DataFrame | None":
        """Labelled experiences that the challenger learned from and the champion did not."""
        ...

    @property
    def evaluation(self) -> Result:
        """The table of policies on held-out sessions."""
        ...

    @property
    def parity(self) -> Mapping[str, Any]:
        """How far the exported graph is from the network, see `onnx_export.parity`."""
        ...

    @property
    def cache(self) -> Path:
        """A folder for answers that are worth keeping."""
        ...


@dataclass(frozen=True)
class ReleaseGate:
    """A blocking check between a checkpoint and its release."""

    name: str
    asset: str
    """The asset that it judges, as last materialised."""
    description: str
    judge: Callable[[Evidence], Verdict]


def _finite_and_bounded(of: Evidence) -> Verdict:
    trained = of.checkpoint
    clip = float(trained.hyperparameters["clip"])
    return numerics.finite_and_bounded(
        trained.weights, trained.losses, trained.max_gradient_norm, clip
    )


def _drift_within_bounds(of: Evidence) -> Verdict:
    from drl_assets.learning.gates import drift

    known = drift.learned_states(of.champion.replay) if of.champion else None
    return drift.drift_within_bounds(known, drift.states_of(of.new_rows), of.bounds)


def _labels_consistent(of: Evidence) -> Verdict:
    from drl_assets.learning.gates import label_quality

    champion, frame = of.champion, of.new_rows
    if champion is None:
        return Verdict(True, "does not apply: there is no champion yet")
    if frame is None or frame.is_empty():
        return Verdict(True, "no labels are new to the champion")
    return _inapplicable("labels_consistent", champion) or label_quality.labels_consistent(
        *label_quality.champion_predictions(champion, frame), of.bounds
    )


def _oracle_regret(of: Evidence) -> Verdict:
    from drl_assets.learning.gates import oracle_regret

    return _inapplicable("oracle_regret", of.checkpoint) or oracle_regret.regret_within_bounds(
        oracle_regret.regrets_of(of.checkpoint, of.cache), of.bounds
    )


def _inapplicable(gate: str, checkpoint: "Checkpoint") -> Verdict | None:
    """The warning of a gate that cannot judge an algorithm, None where it can."""
    algorithm = checkpoint.algorithm
    if gate not in algorithm.inapplicable_gates:
        return None
    return Verdict(False, f"not applicable to {algorithm.title}", "WARN")


GATES = (
    ReleaseGate(
        "finite_and_bounded",
        "trained_checkpoint",
        "Every weight and loss is finite, and the gradient stayed within its bound.",
        _finite_and_bounded,
    ),
    ReleaseGate(
        "drift_within_bounds",
        "trained_checkpoint",
        "The new rows are possible states; how far they are from the champion's, is a warning.",
        _drift_within_bounds,
    ),
    ReleaseGate(
        "labels_consistent",
        "trained_checkpoint",
        "The new labels are not the champion's opinion turned round.",
        _labels_consistent,
    ),
    ReleaseGate(
        "oracle_regret",
        "trained_checkpoint",
        "On generators of known optimum (G1, G2) the learner's regret is within bounds.",
        _oracle_regret,
    ),
    ReleaseGate(
        "not_worse_than_doing_nothing_or_everything",
        "policy_evaluation",
        """On held-out sessions the policy is not worse than never acting or always terminating.

    Worse means that the whole 95 % interval of the paired difference in return, sessions
    resampled, lies below zero. With fewer than two held-out sessions nothing can be told: that is a
    warning, and the result says so.
    """,
        lambda of: evaluation_gates.not_worse_than_doing_nothing_or_everything(of.evaluation),
    ),
    ReleaseGate(
        "not_worse_than_champion",
        "policy_evaluation",
        """On the same held-out episodes it is shown to be no worse than the champion by delta.

        Overall, and within each attack type of enough held-out sessions.
        """,
        lambda of: evaluation_gates.not_worse_than_champion(of.evaluation, of.bounds),
    ),
    ReleaseGate(
        "interruption_within_budget",
        "policy_evaluation",
        """The upper bound of benign interruption is within budget, or not above the champion's.

        Before the first release it only warns.
        """,
        lambda of: evaluation_gates.interruption_within_budget(of.evaluation, of.bounds),
    ),
    ReleaseGate(
        "not_worse_than_supervised",
        "policy_evaluation",
        """It is not worse than the supervised baseline that did best when it was tuned.

        Before the first release it only warns.
        """,
        lambda of: evaluation_gates.not_worse_than_supervised(
            of.evaluation, of.checkpoint.baselines, of.bounds
        ),
    ),
    ReleaseGate(
        "review_within_cap",
        "policy_evaluation",
        """It does not send more to review than people can look at, or than the champion does.

        Before the first release it only warns.
        """,
        lambda of: evaluation_gates.review_within_cap(of.evaluation, of.bounds),
    ),
    ReleaseGate(
        "onnx_parity",
        "onnx_model",
        "On 65,536 states ONNX Runtime agrees with torch and numpy, and no best action flips.",
        lambda of: numerics.onnx_parity(of.parity),
    ),
)
"""In the order in which a challenger comes to them."""
