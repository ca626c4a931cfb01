"""Gates between a checkpoint and its release; all of them block.

What each holds a challenger to stands in `drl_assets.learning.gates.release_gates`; a check fetches
the figures and shows the verdict. A gate that is not passed with severity WARN lets the challenger
through.
"""

import json
from typing import TYPE_CHECKING, Any

import dagster as dg

from drl_assets.defs.experiences.selection import rows_for_training
from drl_assets.defs.gate_results import reported
from drl_assets.defs.resources import Project, latest_version

if TYPE_CHECKING:
    import polars as pl

    from drl_assets.learning.learners.checkpoint import Checkpoint


@dg.asset_check(asset="trained_checkpoint", blocking=True)
def finite_and_bounded(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """Every weight and loss is finite, and the gradient stayed within its bound."""
    import math

    from drl_assets.learning.gates.release_gates import Verdict
    from drl_assets.learning.learners import checkpoint

    version = latest_version(context.instance)
    trained = checkpoint.load(project.checkpoint_path(version))
    weights = all(bool(tensor.isfinite().all()) for tensor in trained.weights.values())
    losses = all(math.isfinite(loss) for loss in trained.losses)
    bound = float(trained.hyperparameters["clip"])
    steep = trained.max_gradient_norm > bound * (1 + 1e-5)
    wrong = {"weights": not weights, "losses": not losses, "gradient": steep}
    found = [name for name, broken in wrong.items() if broken]
    verdict = Verdict(
        "finite_and_bounded",
        not found,
        f"not finite, or beyond bounds: {', '.join(found)}" if found else "all finite and bounded",
        figures={
            "finite_weights": weights,
            "finite_losses": losses,
            "max_gradient_norm": trained.max_gradient_norm,
            "clip": bound,
        },
    )
    return reported(project, version, verdict)


@dg.asset_check(asset="trained_checkpoint", blocking=True)
def drift_within_bounds(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """The new rows are possible states; how far they are from the champion's, is a warning."""
    import numpy as np

    from drl_assets.learning.gates import drift
    from drl_core.policy.features import FEATURE_COUNT

    version = latest_version(context.instance)
    champion, frame = _champion_and_news(project, version)
    known = None
    if champion is not None:
        known = champion.replay["state"]
        known = known[:, 0] if known.ndim == 3 else known  # an axis of isolation levels
    none = np.empty((0, FEATURE_COUNT))
    states = none if frame is None else frame["state"].to_numpy().reshape(-1, FEATURE_COUNT)
    return reported(
        project, version, drift.drift_within_bounds(known, states, project.settings.gates)
    )


@dg.asset_check(asset="trained_checkpoint", blocking=True)
def labels_consistent(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """The new labels are not the champion's opinion turned round."""
    from drl_assets.learning.gates import label_quality
    from drl_assets.learning.gates.release_gates import Verdict
    from drl_assets.learning.learners.networks import PosteriorQNetwork

    version = latest_version(context.instance)
    champion, frame = _champion_and_news(project, version)
    name = "labels_consistent"
    if champion is None:
        verdict = Verdict(name, True, "does not apply: there is no champion yet")
    elif frame is None or frame.is_empty():
        verdict = Verdict(name, True, "no labels are new to the champion")
    elif not isinstance(network := champion.network(), PosteriorQNetwork):
        verdict = Verdict(name, False, "not applicable to the report's preset", "WARN")
    else:
        new = label_quality.of_rows(
            network,
            frame["state"].to_numpy(),
            frame["is_malicious"].to_numpy(),
            frame["session_id"].to_list(),
            frame["episode_start"].to_numpy(),
        )
        own = label_quality.of_replay(network, champion.replay)
        verdict = label_quality.labels_consistent(own, new, project.settings.gates)
    return reported(project, version, verdict)


@dg.asset_check(asset="trained_checkpoint", blocking=True)
def oracle_regret(context: dg.AssetCheckExecutionContext, project: Project) -> dg.AssetCheckResult:
    """On generators of known optimum (G1, G2) the learner's regret is within bounds."""
    from drl_assets.learning.gates import oracle_regret, release_gates
    from drl_assets.learning.learners import checkpoint

    version = latest_version(context.instance)
    trained = checkpoint.load(project.checkpoint_path(version))
    shares = None
    if "oracle_regret" not in trained.algorithm.inapplicable_gates:
        shares = oracle_regret.regrets(
            oracle_regret.learner(trained.hyperparameters),
            trained.hidden_layers,
            project.settings.checkpoints_path,
        )
    return reported(project, version, release_gates.oracle_regret(shares, project.settings.gates))


@dg.asset_check(asset="policy_evaluation", blocking=True)
def not_worse_than_doing_nothing_or_everything(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """On held-out sessions the policy is not worse than never acting or always terminating.

    Worse means that the whole 95 % interval of the paired difference in return, sessions
    resampled, lies below zero. With fewer than two held-out sessions nothing can be told: that is a
    warning, and the result says so.
    """
    from drl_assets.learning.gates import release_gates

    version, result = _evaluated(context, project)
    verdict = release_gates.not_worse_than_doing_nothing_or_everything(result)
    return reported(project, version, verdict)


@dg.asset_check(asset="policy_evaluation", blocking=True)
def not_worse_than_champion(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """On the same held-out episodes it is shown to be no worse than the champion by delta.

    Overall, and within each attack type of enough held-out sessions.
    """
    from drl_assets.learning.gates import release_gates

    version, result = _evaluated(context, project)
    verdict = release_gates.not_worse_than_champion(result, project.settings.gates)
    return reported(project, version, verdict)


@dg.asset_check(asset="policy_evaluation", blocking=True)
def interruption_within_budget(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """The upper bound of benign interruption is within budget, or not above the champion's.

    Before the first release it only warns.
    """
    from drl_assets.learning.gates import release_gates

    version, result = _evaluated(context, project)
    verdict = release_gates.interruption_within_budget(result, project.settings.gates)
    return reported(project, version, verdict)


@dg.asset_check(asset="policy_evaluation", blocking=True)
def not_worse_than_supervised(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """It is not worse than the supervised baseline that did best when it was tuned.

    Before the first release it only warns.
    """
    from drl_assets.learning.gates import release_gates
    from drl_assets.learning.learners import checkpoint

    version, result = _evaluated(context, project)
    trained = checkpoint.load(project.checkpoint_path(version))
    verdict = release_gates.not_worse_than_supervised(
        result, trained.baselines, project.settings.gates
    )
    return reported(project, version, verdict)


@dg.asset_check(asset="policy_evaluation", blocking=True)
def review_within_cap(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """It does not send more to review than people can look at, or than the champion does.

    Before the first release it only warns.
    """
    from drl_assets.learning.gates import release_gates

    version, result = _evaluated(context, project)
    return reported(
        project, version, release_gates.review_within_cap(result, project.settings.gates)
    )


def _evaluated(
    context: dg.AssetCheckExecutionContext, project: Project
) -> tuple[str, dict[str, Any]]:
    """The version that was evaluated last, and its table."""
    version = latest_version(context.instance, "policy_evaluation")
    return version, json.loads(project.evaluation_path(version).read_bytes())


def _champion_and_news(
    project: Project, version: str
) -> "tuple[Checkpoint | None, pl.DataFrame | None]":
    """The champion's checkpoint, and the labelled rows that a version learned and it did not."""
    from drl_assets.learning.learners import checkpoint

    learned = set(checkpoint.load(project.checkpoint_path(version)).batches)
    released = project.champion
    if released is None:
        return None, rows_for_training(project, learned, set())
    champion = checkpoint.load(project.checkpoint_path(released.model_version))
    return champion, rows_for_training(project, learned, set(champion.batches))
