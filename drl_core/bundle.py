"""The released model: blob, signed manifest, one atomic pointer. Publish, verify, load, roll back.

    <store>/blobs/<sha256>.onnx        the whole decision path, feature extraction included
    <store>/releases/<sequence>.json   every release ever made, signed
    <store>/current.json               a copy of the newest release; replaced in one rename

A release file is an envelope: the manifest, the id of the key and an Ed25519 signature over the
manifest's exact bytes. The file has one valid form; any changed byte makes it refused. The sequence
number only rises, so an old release cannot be replayed: a rollback is a new, signed release of an
old blob.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from filelock import FileLock
from msgspec import Meta, Struct

from drl_core.actions import ACTION_COUNT
from drl_core.features import CARRY_WIDTH, FEATURE_COUNT, FEATURES_VERSION, WINDOW_WIDTH
from drl_core.landing import write_atomically

MAX_BLOB_BYTES = 64 << 20
WITHDRAWN = ".withdrawn"
"""Suffix of a release file that is set aside; its sequence number is not given again."""
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
    """What a model is, where it came from and how it did; first the report's ModelMetadata."""

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
    """The version that this release takes back, where it is a rollback."""


class _Envelope(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    manifest: msgspec.Raw
    key_id: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
    signature: Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]


class BundleError(ValueError):
    """A release that must not be served. `reason` is a short, stable name for metrics and tests."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}: {message}")


class Release(Struct, frozen=True):
    """A verified release: its manifest and the verified bytes of its model."""

    manifest: Manifest
    model: bytes


TrustedKeys = Mapping[str, Ed25519PublicKey]


def key_id(key: Ed25519PublicKey) -> str:
    """The first 16 hex digits of the SHA-256 of the raw public key."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def signing_key(folder: Path) -> Ed25519PrivateKey:
    """The signing key in a folder; made on first use, readable by its owner alone.

    Beside `signing.pem` stands `trusted/<key id>.pub`, which a service needs to verify releases.
    """
    path = folder / "signing.pem"
    (folder / "trusted").mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not path.exists():
            folder.chmod(0o700)
            key = Ed25519PrivateKey.generate()
            write_atomically(path, _private_pem(key), mode=0o600)
        loaded = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(loaded, Ed25519PrivateKey):
            raise BundleError("signing_key", f"{path} is not an Ed25519 key")
        trust(folder, loaded.public_key())
    return loaded


def trust(folder: Path, key: Ed25519PublicKey) -> None:
    """Put a public key among the trusted ones of a folder."""
    path = folder / "trusted" / f"{key_id(key)}.pub"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_atomically(path, _public_pem(key))


def trusted_keys(folder: Path) -> dict[str, Ed25519PublicKey]:
    """Public keys in `<folder>/trusted`, by key id."""
    keys: dict[str, Ed25519PublicKey] = {}
    for path in sorted((folder / "trusted").glob("*.pub")):
        try:
            key = serialization.load_pem_public_key(path.read_bytes())
        except (ValueError, UnsupportedAlgorithm) as cause:
            raise BundleError("trusted_key", f"{path}: {cause}") from None
        if not isinstance(key, Ed25519PublicKey):
            raise BundleError("trusted_key", f"{path} is not an Ed25519 key")
        keys[key_id(key)] = key
    return keys


def _private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


class ModelStore:
    """A folder of releases. Readers see the old release or the new one, never half of one."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def current_path(self) -> Path:
        """The pointer: a reader polls it with `stat`."""
        return self.root / "current.json"

    def publish(self, model: bytes, manifest: Manifest, key: Ed25519PrivateKey) -> Manifest:
        """Write the blob, then the signed release, then the pointer; each is atomic.

        Args:
            model: the ONNX bytes.
            manifest: `sequence`, `sha256`, `blob` and `size_bytes` are set here.
            key: signs the manifest.

        Returns:
            The manifest as signed.
        """
        digest = hashlib.sha256(model).hexdigest()
        blobs, releases = self.root / "blobs", self.root / "releases"
        blobs.mkdir(parents=True, exist_ok=True)
        releases.mkdir(exist_ok=True)
        with FileLock(self.root / ".publish.lock"):
            signed = msgspec.structs.replace(
                manifest,
                sequence=self._last_sequence() + 1,
                sha256=digest,
                blob=f"blobs/{digest}.onnx",
                size_bytes=len(model),
            )
            blob = self.root / signed.blob
            if not blob.exists() or blob.read_bytes() != model:
                write_atomically(blob, model)
            content = sign(signed, key)
            release = releases / f"{signed.sequence:08d}.json"
            write_atomically(release, content)
            public = key.public_key()
            try:  # read back before anyone is pointed to it
                self.load({key_id(public): public}, release)
            except BundleError:
                release.unlink()  # a rollback would stumble over it
                raise
            write_atomically(self.current_path, content)
        return signed

    def releases(self) -> list[Path]:
        """Release files, oldest first."""
        return sorted((self.root / "releases").glob("[0-9]*.json"))

    def load(
        self, trusted: TrustedKeys, path: Path | None = None, after_sequence: int = 0
    ) -> Release:
        """Verify a release and read its model.

        Args:
            trusted: public keys by key id.
            path: a release file; the current one when omitted.
            after_sequence: the sequence that is served now; a release must not be older.

        Raises:
            BundleError: whatever is wrong with it, by name.
            FileNotFoundError: nothing has been released yet.
        """
        manifest = verify((path or self.current_path).read_bytes(), trusted)
        if manifest.sequence < after_sequence:
            raise BundleError(
                "sequence", f"release {manifest.sequence} is older than {after_sequence}, replayed?"
            )
        return Release(manifest, self._read_blob(manifest))

    def rollback(self, trusted: TrustedKeys, key: Ed25519PrivateKey) -> Manifest:
        """Release the model before the current one again, under a new sequence number.

        A model that was itself taken back is passed over, so a second rollback goes further back.

        Raises:
            BundleError: there is no earlier model.
        """
        current = self.load(trusted).manifest
        earlier = self._before(current.model_version, trusted)
        if earlier is None:
            raise BundleError("rollback", f"there is no model before {current.model_version}")
        again = msgspec.structs.replace(earlier.manifest, rollback_of=current.model_version)
        return self.publish(earlier.model, again, key)

    def take_back(
        self, version: str, trusted: TrustedKeys, key: Ed25519PrivateKey
    ) -> Manifest | None:
        """Roll back a release that turned out wrong, be it that it cannot even be read.

        The model before it is released again. Where there is none, the release is withdrawn: the
        pointer goes, and the release is set aside for a look, so that no rollback comes upon it.
        Nothing happens where another model is the current one by now.

        Args:
            version: the model that must not be served.
            trusted: public keys by key id.
            key: signs the rollback.

        Returns:
            What is released now, None where nothing is.
        """
        try:
            current = self.load(trusted).manifest
        except FileNotFoundError:
            return None
        except BundleError:
            current = None  # not fit to be served, whatever it says that it is
        if current is not None and current.model_version != version:
            return current
        earlier = self._before(version, trusted)
        if earlier is not None:
            again = msgspec.structs.replace(earlier.manifest, rollback_of=version)
            return self.publish(earlier.model, again, key)
        with FileLock(self.root / ".publish.lock"):
            self.current_path.unlink()
            for path in self.releases():
                path.rename(path.with_suffix(WITHDRAWN))
        return None

    def _before(self, version: str, trusted: TrustedKeys) -> Release | None:
        """The newest release of another model that was not taken back itself."""
        passed = {version}
        for path in reversed(self.releases()):
            try:
                earlier = self.load(trusted, path)
            except BundleError:
                continue  # it can be served no more, so it is none to go back to
            if earlier.manifest.rollback_of:
                passed.add(earlier.manifest.rollback_of)
            if earlier.manifest.model_version not in passed:
                return earlier
        return None

    def _read_blob(self, manifest: Manifest) -> bytes:
        if manifest.blob != f"blobs/{manifest.sha256}.onnx":
            raise BundleError(
                "blob_path", f"{manifest.blob!r} is not this store's path of the blob"
            )
        if manifest.size_bytes > MAX_BLOB_BYTES:
            raise BundleError("blob_size", f"{manifest.size_bytes} bytes, at most {MAX_BLOB_BYTES}")
        path = self.root / manifest.blob
        try:
            if os.path.islink(path):  # noqa: PTH114
                raise BundleError("blob_path", f"{path} is a link")
            model = path.read_bytes()
        except FileNotFoundError:
            raise BundleError("blob_missing", f"{path} does not exist") from None
        if hashlib.sha256(model).hexdigest() != manifest.sha256:
            raise BundleError("checksum", f"{path} is not the model that was signed")
        return model

    def _last_sequence(self) -> int:
        files = [*self.releases(), *(self.root / "releases").glob(f"[0-9]*{WITHDRAWN}")]
        numbers = [int(path.stem) for path in files if re.fullmatch(r"\d+", path.stem)]
        return max(numbers, default=0)


def sign(manifest: Manifest, key: Ed25519PrivateKey) -> bytes:
    """The release file of a manifest."""
    raw = msgspec.json.encode(manifest)
    return msgspec.json.encode(
        _Envelope(
            manifest=msgspec.Raw(raw),
            key_id=key_id(key.public_key()),
            signature=key.sign(raw).hex(),
        )
    )


def verify(content: bytes, trusted: TrustedKeys) -> Manifest:
    """Check a release file's form, signature and contract.

    Raises:
        BundleError: `format`, `unknown_key`, `signature` or `contract`.
    """
    try:
        envelope = msgspec.json.decode(content, type=_Envelope)
    except (msgspec.MsgspecError, UnicodeDecodeError) as cause:
        raise BundleError("format", f"not a signed release: {cause}") from None
    if msgspec.json.encode(envelope) != content:
        raise BundleError("format", "bytes beside the manifest were changed")
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
            f"the model speaks {manifest.features_version}, this program {FEATURES_VERSION}",
        )
    if (manifest.input_dim, manifest.output_dim) != (FEATURE_COUNT, ACTION_COUNT):
        raise BundleError("contract", "the network is not 30 features to 5 actions")
    return manifest
