"""Training and evaluation: a checkpoint, and its value on held-out sessions."""

import dagster as dg

from drl_assets.defs.experiences.selection import held_out_rows, new_experiences
from drl_assets.defs.resources import Project, latest_version
from drl_assets.reporting import metadata


@dg.asset(
    deps=["experiences"],
    group_name="training",
    kinds={"pytorch"},
    owners=["team:learning"],
    code_version="1",
)
def trained_checkpoint(
    context: dg.AssetExecutionContext, project: Project
) -> dg.MaterializeResult[None]:
    """Incremental training: the champion's weights and replay, and only batches new to it."""
    from drl_assets.learning import trainer
    from drl_assets.learning.learners import checkpoint

    settings = project.settings
    champion = project.champion
    parent = checkpoint.load(project.checkpoint_path(champion.model_version)) if champion else None
    if parent and not trainer.continues(parent, settings.learning, settings.costs):
        parent = None  # another kind of learner begins anew, from every batch
    rows, batches = new_experiences(project, set(parent.batches) if parent else set())
    trained = trainer.train(
        rows,
        settings.learning,
        costs=settings.costs,
        parent=parent,
        batches=batches,
        progress=lambda done, total, text: context.log.info(f"{done}/{total} {text}"),
        progress_path=settings.checkpoints_path / "unfinished.pt",
    )
    path = project.checkpoint_path(trained.version)
    digest = trained.save(path)
    chosen = trained.hyperparameters
    return dg.MaterializeResult(
        metadata={
            "version": trained.version,
            "parent_version": trained.parent_version or "none",
            "preset": trained.preset,
            "new_batches": len(batches),
            "last_batch": batches[-1],
            "new_rows": len(rows),
            "training_episodes": trained.training_episodes,
            "gradient_steps": trained.gradient_steps,
            "final_loss": trained.losses[-1] if trained.losses else "too few steps",
            "final_average_reward": trained.final_average_reward,
            "max_gradient_norm": trained.max_gradient_norm,
            "regularisation": trained.algorithm.explain(chosen),
            "validation": metadata.candidate_table(chosen.get("validation", [])),
            "learning_curve": metadata.learning_curve(trained.losses, trained.returns),
            "path": dg.MetadataValue.path(path),
            "sha256": digest,
        }
    )


@dg.asset(
    deps=["trained_checkpoint"],
    group_name="training",
    kinds={"numpy"},
    owners=["team:learning"],
    code_version="1",
)
def policy_evaluation(
    context: dg.AssetExecutionContext, project: Project
) -> dg.MaterializeResult[None]:
    """The policy beside its baselines and the champion on the held-out sessions; never trains."""
    import json

    from drl_assets.learning.data.episodes import from_experiences
    from drl_assets.learning.evaluation import evaluate, off_policy, policies
    from drl_assets.learning.export import onnx_export
    from drl_assets.learning.learners import checkpoint
    from drl_assets.reporting import markdown
    from drl_core.files import write_atomically

    version = latest_version(context.instance)
    trained = checkpoint.load(project.checkpoint_path(version))
    rows, released = held_out_rows(project), project.released
    episodes = from_experiences(rows)
    champion = policies.onnx_policy(onnx_export.session(released.model)) if released else None
    q_values = policies.network_q(trained.network())
    result = evaluate.evaluate_policies(
        policies.greedy(q_values),
        episodes,
        trained.baselines,
        project.settings.costs,
        q_values=q_values,
        champion=champion,
    )
    result["off_policy"] = off_policy.estimate(rows, q_values, project.settings.costs)
    write_atomically(project.evaluation_path(version), json.dumps(result).encode())
    return dg.MaterializeResult(
        metadata={
            "version": version,
            "episodes": result["episodes"],
            "malicious": result["malicious"],
            "sessions": result["sessions"],
            "unlabelled": result["unlabelled"],
            "notes": dg.MetadataValue.md(
                "\n".join(f"- {note}" for note in result["notes"]) or "none"
            ),
            "policies": metadata.policy_table(result),
            "attack_types": metadata.group_table(result["per_attack_type"], "attack type"),
            "sources": metadata.group_table(result["per_source"], "source"),
            "off_policy": dg.MetadataValue.md(markdown.off_policy(result["off_policy"])),
            **metadata.evaluation_pictures(result, q_values, episodes),
            "path": dg.MetadataValue.path(project.evaluation_path(version)),
        }
    )
