"""Operations of the model routes: manifests, releases, rollback."""

import asyncio
from typing import Any

import msgspec

from drl_core.release import signing_keys
from drl_core.release.errors import BundleError
from drl_core.release.manifest import Manifest, verify_manifest
from drl_core.release.signing_keys import trusted_keys as read_trusted_keys
from drl_core.release.store import Release
from drl_serving.http.problems import Problem
from drl_serving.models.holder import ModelHolder
from drl_serving.models.onnx_model import ServedModel
from drl_serving.models.schemas import ModelDetails, ReleaseSummary, RolledBack


def require_model(models: ModelHolder) -> ServedModel:
    """The served model.

    Raises:
        Problem: 503 while there is none.
    """
    if models.current is not None:
        return models.current
    raise no_model()


def no_model() -> Problem:
    """503: nothing can be decided yet."""
    return Problem(
        503,
        "no-model",
        "no released model has been loaded, so nothing can be decided",
        "Release a model (drl up trains one from landed telemetry), then try again; where one was "
        "released, drl_model_reloads_total at /metrics says why it was refused.",
        retry_after_s=5,
    )


def metadata(model: ServedModel) -> dict[str, Any]:
    """A model's manifest without its golden rows."""
    return _public_fields(model.manifest)


def _public_fields(manifest: Manifest) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(manifest)
    fields.pop("golden")
    return fields


async def details(models: ModelHolder, version: str) -> ModelDetails:
    """A model of the store by its version.

    Raises:
        Problem: 404 unknown, 409 for one that must not be served.
    """
    loaded = {model.manifest.model_version: model for model in models.loaded()}
    found: ServedModel | Release | None = loaded.get(version)
    try:
        if found is None:
            trusted = read_trusted_keys(models.keys_path)
            found = await asyncio.to_thread(models.store.find, version, trusted)
    except BundleError as error:
        raise _refused(error) from None
    current, challenger = models.current, models.challenger
    return ModelDetails(
        manifest=_public_fields(found.manifest),
        key_id=found.key_id,
        serving=current is not None and current.manifest.model_version == version,
        challenger=challenger is not None and challenger.manifest.model_version == version,
        loaded=version in loaded,
    )


def _refused(error: BundleError) -> Problem:
    if error.reason == "unknown_version":
        return Problem(404, "unknown-version", str(error), "GET /v1/models lists the releases.")
    return Problem(
        409,
        "release-refused",
        str(error),
        "Choose another version; GET /v1/models says which are sound.",
        extra={"reason": error.reason},
    )


async def roll_back(models: ModelHolder) -> RolledBack:
    """Release the model before the current one again.

    Raises:
        Problem: 409 without a signing key here, or without an earlier model; 503 while there is no
            release at all.
    """
    require_model(models)
    manifest = await asyncio.to_thread(_roll_back, models)
    await models.poll()
    return RolledBack(
        model_version=manifest.model_version,
        sequence=manifest.sequence,
        rollback_of=manifest.rollback_of,
    )


def _roll_back(models: ModelHolder) -> Manifest:
    try:
        key = signing_keys.existing_signing_key(models.keys_path)
        if key is None:
            raise Problem(
                409,
                "no-signing-key",
                "this service only verifies releases: it has no key to sign one",
                "Run `drl bundle rollback` where the signing key is kept.",
            )
        return models.store.rollback(read_trusted_keys(models.keys_path), key)
    except BundleError as error:
        raise Problem(
            409, "rollback-refused", str(error), "GET /v1/models lists the releases."
        ) from None


def releases(models: ModelHolder, limit: int) -> list[ReleaseSummary]:
    """The newest releases, newest first, each with its verification's result."""
    trusted = read_trusted_keys(models.keys_path)
    serving = models.current.manifest.sequence if models.current else None
    summaries = []
    for path in reversed(models.store.releases()[-limit:]):
        sequence = int(path.stem)
        try:
            manifest = verify_manifest(path.read_bytes(), trusted)
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
