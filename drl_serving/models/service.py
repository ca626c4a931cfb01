"""Reads the served model's manifest and the store's releases."""

from typing import Any

import msgspec

from drl_core.bundle import BundleError, verify
from drl_core.bundle import trusted_keys as read_trusted_keys
from drl_serving.model import ModelHolder, ServedModel
from drl_serving.models.schemas import ReleaseSummary
from drl_serving.problems import Problem


def require_model(models: ModelHolder) -> ServedModel:
    """The served model.

    Raises:
        Problem: 503 while there is none.
    """
    if models.current is not None:
        return models.current
    raise Problem(
        503,
        "no-model",
        "no released model has been loaded, so nothing can be decided",
        "Release a model (drl up trains one from landed telemetry), then try again; where one was "
        "released, drl_model_reloads_total at /metrics says why it was refused.",
        retry_after_s=5,
    )


def metadata(model: ServedModel) -> dict[str, Any]:
    """A model's manifest without its golden rows."""
    fields: dict[str, Any] = msgspec.to_builtins(model.manifest)
    fields.pop("golden")
    return fields


def releases(models: ModelHolder, limit: int) -> list[ReleaseSummary]:
    """The newest releases, newest first, each with its verification's result."""
    trusted = read_trusted_keys(models.keys_path)
    serving = models.current.manifest.sequence if models.current else None
    summaries = []
    for path in reversed(models.store.releases()[-limit:]):
        sequence = int(path.stem)
        try:
            manifest = verify(path.read_bytes(), trusted)
            refused = None if manifest.sequence == sequence else "sequence"
        except BundleError as error:
            manifest, refused = None, error.reason
        summaries.append(
            ReleaseSummary(
                sequence=sequence,
                model_version=manifest.model_version if manifest else None,
                training_date=manifest.training_date if manifest else None,
                sha256=manifest.sha256 if manifest else None,
                rollback_of=manifest.rollback_of if manifest else None,
                serving=refused is None and sequence == serving,
                refused=refused,
            )
        )
    return summaries
