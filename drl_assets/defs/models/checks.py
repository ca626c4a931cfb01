"""Gates on the graph and on the release."""

import dagster as dg

from drl_assets.defs.resources import Project, latest_version


@dg.asset_check(asset="onnx_model", blocking=True)
def onnx_parity(context: dg.AssetCheckExecutionContext, project: Project) -> dg.AssetCheckResult:
    """On 65,536 states ONNX Runtime agrees with torch and numpy, and no best action flips."""
    from drl_assets.learning import checkpoint, export

    version = latest_version(context.instance, "onnx_model")
    network = checkpoint.load(project.checkpoint_path(version)).network()
    found = export.parity(network, project.onnx_path(version).read_bytes())
    agree = found["q_error"] <= 1e-5 and found["feature_error"] <= 1e-6
    return dg.AssetCheckResult(passed=agree and found["argmax_flips"] == 0, metadata={**found})


@dg.asset_check(asset="published_model", blocking=True)
def signature_and_manifest(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """What a service would load verifies, and is this very model with its whole lineage."""
    import hashlib

    from drl_core import bundle

    version = latest_version(context.instance, "published_model")
    settings = project.settings
    release = project.models.load(bundle.trusted_keys(settings.keys_path))
    manifest = release.manifest
    digest = hashlib.sha256(project.checkpoint_path(version).read_bytes()).hexdigest()
    wrong = [
        name
        for name, holds in {
            "model_version": manifest.model_version == version,
            "checkpoint_sha256": manifest.checkpoint_sha256 == digest,
            "batch_partitions": bool(manifest.batch_partitions),
            "dagster_run_id": bool(manifest.dagster_run_id),
            "golden": bool(manifest.golden.windows),
        }.items()
        if not holds
    ]
    return dg.AssetCheckResult(
        passed=not wrong, metadata={"sequence": manifest.sequence, "wrong_fields": wrong}
    )
