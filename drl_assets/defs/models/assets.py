"""Model export and release: a checkpoint becomes an ONNX graph, then a signed release."""

import dagster as dg

from drl_assets.defs.resources import Project, latest_version
from drl_assets.reporting import metadata
from drl_assets.reporting.provenance import git_commit


@dg.asset(
    deps=["trained_checkpoint", "policy_evaluation"],
    group_name="models",
    kinds={"onnx"},
    owners=["team:serving"],
    code_version="1",
)
def onnx_model(context: dg.AssetExecutionContext, project: Project) -> dg.MaterializeResult[None]:
    """The whole decision path as one graph: raw windows and carry in, Q-values out."""
    import hashlib

    import onnx

    from drl_assets.learning.export import onnx_export
    from drl_assets.learning.learners import checkpoint
    from drl_core.files import write_atomically

    version = latest_version(context.instance)
    network = checkpoint.load(project.checkpoint_path(version)).network()
    model = onnx_export.export(network, cache=project.settings.checkpoints_path)
    path = project.onnx_path(version)
    write_atomically(path, model)
    return dg.MaterializeResult(
        metadata={
            "version": version,
            "size_bytes": len(model),
            "nodes": len(onnx.load_from_string(model).graph.node),
            "opset": onnx_export.OPSET,
            "sha256": hashlib.sha256(model).hexdigest(),
            "path": dg.MetadataValue.path(path),
        }
    )


@dg.asset(
    deps=["onnx_model"],
    group_name="models",
    kinds={"onnx"},
    owners=["team:serving"],
    code_version="1",
    tags={"release": ""},
)
def published_model(
    context: dg.AssetExecutionContext, project: Project
) -> dg.MaterializeResult[None]:
    """The release: signed manifest, gates included, and blob; the service takes it by itself."""
    import json

    from drl_assets.learning.export import release
    from drl_assets.learning.gates import verdicts
    from drl_assets.learning.learners import checkpoint
    from drl_core.release.signing_keys import signing_key

    version = latest_version(context.instance, "onnx_model")
    path = project.checkpoint_path(version)
    evaluation = json.loads(project.evaluation_path(version).read_bytes())
    manifest = release.manifest(
        checkpoint.load(path),
        path,
        evaluation={**evaluation, "gates": verdicts.recorded(project.gates_path(version))},
        run_id=context.run.run_id,
        commit=git_commit(),
    )
    signed = project.models.publish(
        project.onnx_path(version).read_bytes(),
        manifest,
        signing_key(project.settings.keys_path),
    )
    return dg.MaterializeResult(
        metadata={
            "version": version,
            "sequence": signed.sequence,
            "sha256": signed.sha256,
            "parent_version": signed.parent_version or "none",
            "batches": len(signed.batch_partitions),
            "gates": metadata.gate_table(signed.evaluation["gates"]),
            "git_commit": signed.git_commit or "not in a checkout",
            "path": dg.MetadataValue.path(project.models.current_path),
        }
    )
