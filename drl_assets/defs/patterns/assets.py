"""Attack patterns: the released policy's own containments, stored in PostgreSQL."""

import dagster as dg

from drl_assets.defs.resources import Project, find_version, latest_version
from drl_assets.reporting import metadata


@dg.asset(
    deps=["published_model", "experiences"],
    group_name="patterns",
    kinds={"postgres"},
    owners=["team:detection"],
    code_version="1",
)
def attack_patterns(
    context: dg.AssetExecutionContext, project: Project
) -> dg.MaterializeResult[None]:
    """What the policy would have contained in the batches that are new with this release."""
    from drl_assets.learning.data.episodes import from_experiences
    from drl_assets.learning.export import attack_patterns
    from drl_assets.learning.learners import checkpoint
    from drl_core.storage import patterns
    from drl_core.storage.encryption import Keyring

    version = latest_version(context.instance, "published_model")
    trained = checkpoint.load(project.checkpoint_path(version))
    # what the parent had learned from, unless its own patterns were never stored
    before = (trained.parent_version, find_version(context.instance, "attack_patterns"))
    known = set[str]()
    if None not in before:
        known = set.intersection(
            *(set(checkpoint.load(project.checkpoint_path(v)).batches) for v in before if v)
        )
    scan = project.tables.scan("experiences", without=known)
    if scan is None:
        raise dg.Failure(f"the batches that taught {version} are gone")
    found = attack_patterns.patterns(
        trained.network(), from_experiences(scan.collect()), version, project.settings.costs
    )
    stored, queued = patterns.upsert_or_queue(
        project.database_url, found, Keyring(project.settings.keys_path), project.outbox
    )
    return dg.MaterializeResult(
        metadata={
            "version": version,
            "dagster/row_count": stored + queued,
            "queued": queued,
            "by_attack_type": metadata.pattern_table(found),
        }
    )
