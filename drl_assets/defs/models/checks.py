"""Gates on the graph and on the release; a release that fails is taken back by itself."""

import dagster as dg

from drl_assets.defs.experiences.selection import held_out_episodes
from drl_assets.defs.gate_results import checks_of
from drl_assets.defs.resources import Project, latest_version

release_gates = checks_of("onnx_model")


@dg.asset_check(asset="published_model", blocking=True)
def signature_and_manifest(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """What a service would load verifies, and is this very model with its whole lineage.

    A release that does not is taken back: the model before it is released again.
    """
    import hashlib

    from drl_assets.learning.export import onnx_export
    from drl_core.release.errors import BundleError
    from drl_core.release.signing_keys import trusted_keys

    version = latest_version(context.instance, "published_model")
    try:
        release = project.models.load(trusted_keys(project.settings.keys_path))
        onnx_export.check_golden(release)
    except (BundleError, FileNotFoundError) as cause:
        return _refused(project, version, str(cause))
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
    if wrong:
        return _refused(project, version, f"wrong in the manifest: {', '.join(wrong)}")
    return dg.AssetCheckResult(passed=True, metadata={"sequence": manifest.sequence})


@dg.asset_check(asset="published_model", blocking=True)
def plays_as_evaluated(
    context: dg.AssetCheckExecutionContext, project: Project
) -> dg.AssetCheckResult:
    """The released graph agrees with the trained network on 65,536 states and on every episode.

    Every held-out episode is played with both; what becomes of it must be the same. A release that
    does otherwise is taken back.
    """
    import numpy as np

    from drl_assets.learning.evaluation import evaluate, policies
    from drl_assets.learning.export import onnx_export
    from drl_assets.learning.learners import checkpoint
    from drl_core.release.errors import BundleError
    from drl_core.release.signing_keys import trusted_keys

    version = latest_version(context.instance, "published_model")
    try:
        release = project.models.load(trusted_keys(project.settings.keys_path))
    except (BundleError, FileNotFoundError) as cause:
        return _refused(project, version, str(cause))
    if release.manifest.model_version != version:
        return _refused(project, version, f"{release.manifest.model_version} is released instead")
    network = checkpoint.load(project.checkpoint_path(version)).network()
    episodes, costs = held_out_episodes(project), project.settings.costs
    session = onnx_export.session(release.model)
    ours, theirs = (
        evaluate.simulate(policy, episodes, costs)
        for policy in (policies.network_policy(network), policies.onnx_policy(session))
    )
    found = {
        "episodes": len(episodes),
        "played_otherwise": int((ours.final_action != theirs.final_action).sum()),
        "greatest_difference": float(np.abs(ours.returns - theirs.returns).max(initial=0.0)),
        **onnx_export.parity(network, release.model),
    }
    # a tie between two actions may fall either way on another runtime
    most = max(1, len(episodes) // 1000)
    if found["argmax_flips"] or found["played_otherwise"] > most:
        return _refused(
            project,
            version,
            f"{found['played_otherwise']} of {len(episodes)} held-out episodes end otherwise, "
            f"{found['argmax_flips']} of {found['states']} best actions flip",
        )
    return dg.AssetCheckResult(passed=True, metadata=found)


def _refused(project: Project, version: str, reason: str) -> dg.AssetCheckResult:
    """Take a release back; again and again comes to the same."""
    from drl_core.release.signing_keys import signing_key, trusted_keys

    keys = project.settings.keys_path
    now = project.models.withdraw(version, trusted_keys(keys), signing_key(keys))
    serves = f"{now.model_version} is released" if now else "there was none before: none is"
    return dg.AssetCheckResult(
        passed=False,
        description=f"{reason}; {version} is taken back, {serves}",
        metadata={
            "reason": reason,
            "taken_back": version,
            "released_now": now.model_version if now else "none",
        },
    )
