"""Gates between a checkpoint and its release; all of them block."""

import dagster as dg

from drl_assets.defs.resources import Project, latest_version


@dg.asset_check(asset="trained_checkpoint", blocking=True)
def finite_and_bounded(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """Every weight and loss is finite, and the gradient stayed within its bound."""
    import math

    from drl_assets.learning import checkpoint

    trained = checkpoint.load(project.checkpoint_path(latest_version(context.instance)))
    weights = all(bool(tensor.isfinite().all()) for tensor in trained.weights.values())
    losses = all(math.isfinite(loss) for loss in trained.losses)
    bound = float(trained.hyperparameters["clip"])
    return dg.AssetCheckResult(
        passed=weights and losses and trained.max_gradient_norm <= bound * (1 + 1e-5),
        metadata={
            "finite_weights": weights,
            "finite_losses": losses,
            "max_gradient_norm": trained.max_gradient_norm,
            "clip": bound,
        },
    )


@dg.asset_check(asset="policy_evaluation", blocking=True)
def not_worse_than_doing_nothing_or_everything(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """On held-out sessions the policy is not worse than never acting or always terminating.

    Worse means that the whole 95 % interval of the paired difference in return, sessions
    resampled, lies below zero. With fewer than two held-out sessions nothing can be told: that is a
    warning, and the result says so.
    """
    import json

    version = latest_version(context.instance, "policy_evaluation")
    result = json.loads(project.evaluation_path(version).read_bytes())
    advantage = {name: result["advantage"][name] for name in ("never_act", "always_terminate")}
    if any(interval is None for interval in advantage.values()):
        return dg.AssetCheckResult(
            passed=False,
            severity=dg.AssetCheckSeverity.WARN,
            description=(
                f"{result['sessions']} held-out session(s) of {result['episodes']} episode(s): too "
                "few to compare; released for observation without evidence"
            ),
            metadata={"sessions": result["sessions"]},
        )
    worse = [name for name, (_, high) in advantage.items() if high < 0]
    return dg.AssetCheckResult(
        passed=not worse,
        description=f"worse than {', '.join(worse)}" if worse else None,
        metadata={f"advantage_over_{name}": str(i) for name, i in advantage.items()},
    )
