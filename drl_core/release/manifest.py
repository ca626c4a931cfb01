"""The signed manifest of a release: what a model is, where it came from, and who signed it.

A `Manifest` and a private key go in, the bytes of a release file come out (`sign_manifest`); those
bytes and the trusted public keys give the manifest back, or a `BundleError` (`verify_manifest`). A
release file is an envelope: the manifest, the id of the key and an Ed25519 signature over the
manifest's exact bytes. The file has one valid form; any changed byte makes it refused. `INPUTS` and
`OUTPUTS` are the contract of the graph that the manifest describes.
"""

from typing import Annotated, Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta, Struct

from drl_core.policy.actions import ACTION_COUNT
from drl_core.policy.features import CARRY_WIDTH, FEATURE_COUNT, FEATURES_VERSION, WINDOW_WIDTH
from drl_core.release.errors import BundleError
from drl_core.release.signing_keys import TrustedKeys, key_id

MAX_BLOB_BYTES = 64 << 20
Hex64 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]

INPUTS = {"windows": WINDOW_WIDTH, "carry": CARRY_WIDTH}
"""Inputs of the graph: float64 [batch, width]."""
OUTPUTS = {"q_values": ACTION_COUNT, "features": FEATURE_COUNT, "carry_after": CARRY_WIDTH}
"""Outputs of the graph: q_values and features float32 [batch, width], carry_after float64."""


class Golden(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Inputs with the answers of the trained network: a loader must reproduce them."""

    windows: list[list[float | None]]
    carry: list[list[float]]
    q_values: list[list[float]]


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Model metadata: what a model is, its lineage and its evaluation."""

    model_version: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,128}\Z")]
    training_date: str
    training_episodes: int
    final_average_reward: float | None
    final_loss: float | None
    learning_rate: float
    gamma: float
    input_dim: int
    output_dim: int
    hidden_layers: list[int]

    sequence: Annotated[int, Meta(ge=1)]
    sha256: Hex64
    blob: str
    size_bytes: int
    features_version: int
    opset: int
    preset: str
    seed: int
    gradient_steps: int
    hyperparameters: dict[str, Any]
    costs_version: int
    checkpoint_sha256: Hex64
    parent_version: str | None
    dagster_run_id: str | None
    batch_partitions: list[str]
    git_commit: str | None
    evaluation: dict[str, Any]
    golden: Golden
    rollback_of: str | None = None
    """The version that this release rolls back, where it is a rollback."""
    staged: bool = False
    """A challenger only: no service accepts it as the current model."""


class Envelope(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A release file: the manifest's exact bytes, and the signature over them in hex."""

    manifest: msgspec.Raw
    key_id: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
    signature: Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]


def sign_manifest(manifest: Manifest, key: Ed25519PrivateKey) -> bytes:
    """The release file of a manifest."""
    raw = msgspec.json.encode(manifest)
    return msgspec.json.encode(
        Envelope(
            manifest=msgspec.Raw(raw),
            key_id=key_id(key.public_key()),
            signature=key.sign(raw).hex(),
        )
    )


def verify_manifest(content: bytes, trusted: TrustedKeys) -> Manifest:
    """Check a release file's form, signature and contract.

    Raises:
        BundleError: `format`, `unknown_key`, `signature` or `contract`.
    """
    envelope = open_envelope(content)
    if envelope.key_id not in trusted:
        raise BundleError("unknown_key", f"key {envelope.key_id} is not trusted")
    raw = bytes(envelope.manifest)
    try:
        trusted[envelope.key_id].verify(bytes.fromhex(envelope.signature), raw)
    except InvalidSignature:
        raise BundleError("signature", "the signature does not fit the manifest") from None
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as cause:
        raise BundleError("contract", f"manifest: {cause}") from None
    if manifest.features_version != FEATURES_VERSION:
        raise BundleError(
            "features_version",
            f"the model has version {manifest.features_version}, this program {FEATURES_VERSION}",
        )
    if (manifest.input_dim, manifest.output_dim) != (FEATURE_COUNT, ACTION_COUNT):
        raise BundleError("contract", "the network is not 30 features to 5 actions")
    return manifest


def open_envelope(content: bytes) -> Envelope:
    """Read a release file without verifying its signature.

    Raises:
        BundleError: `format`.
    """
    try:
        envelope = msgspec.json.decode(content, type=Envelope)
    except (msgspec.MsgspecError, UnicodeDecodeError) as cause:
        raise BundleError("format", f"not a signed release: {cause}") from None
    if msgspec.json.encode(envelope) != content:
        raise BundleError("format", "bytes outside the manifest were changed")
    return envelope
