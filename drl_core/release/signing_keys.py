"""Ed25519 signing keys of releases, and the trusted public keys: make, rotate, distrust.

    <keys>/signing.pem               private key, mode 0600; only a publisher has it
    <keys>/trusted/<key id>.pub      its releases are accepted
    <keys>/distrusted/<key id>.pub   its releases were accepted once

A rotation replaces the signing key; the old public key stays trusted until it is distrusted.
Services notice either by the folder's time stamp.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from filelock import FileLock

from drl_core.files import sync_folder, write_atomically
from drl_core.release.errors import BundleError

TrustedKeys = Mapping[str, Ed25519PublicKey]


def key_id(key: Ed25519PublicKey) -> str:
    """The first 16 hex digits of the SHA-256 of the raw public key."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def signing_key(folder: Path) -> Ed25519PrivateKey:
    """The signing key in a folder; made on first use, readable by its owner only.

    Beside `signing.pem` stands `trusted/<key id>.pub`, which a service needs to verify releases.
    """
    with _locked(folder):
        key = existing_signing_key(folder) or _put_signing_key(folder)
        trust(folder, key.public_key())
    return key


def existing_signing_key(folder: Path) -> Ed25519PrivateKey | None:
    """The signing key in a folder; None where this machine has none.

    Raises:
        BundleError: `signing_key`, the file has something else.
    """
    path = folder / "signing.pem"
    try:
        loaded = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        return None
    except (ValueError, UnsupportedAlgorithm) as cause:
        raise BundleError("signing_key", f"{path}: {cause}") from None
    if not isinstance(loaded, Ed25519PrivateKey):
        raise BundleError("signing_key", f"{path} is not an Ed25519 key")
    return loaded


def rotate(folder: Path) -> Ed25519PrivateKey:
    """Replace the signing key by a new one, and return it.

    The old private key is gone; its public key stays trusted until it is distrusted.
    """
    with _locked(folder):
        return _put_signing_key(folder)


def distrust(folder: Path, name: str) -> None:
    """Stop trusting a key: every release that it signed is refused from now on.

    Raises:
        BundleError: `signing_key`, it is the key that signs now; `unknown_key`, it is not trusted.
    """
    with _locked(folder):
        signing = existing_signing_key(folder)
        if signing is not None and key_id(signing.public_key()) == name:
            raise BundleError("signing_key", f"{name} signs releases: rotate it first")
        path = folder / "trusted" / f"{name}.pub"
        if name not in trusted_keys(folder) or not path.exists():
            raise BundleError(
                "unknown_key", f"{name!r} is not among the trusted {sorted(trusted_keys(folder))}"
            )
        (folder / "distrusted").mkdir(exist_ok=True)
        path.replace(folder / "distrusted" / path.name)
        sync_folder(path.parent)


def _locked(folder: Path) -> FileLock:
    (folder / "trusted").mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".lock")


def _put_signing_key(folder: Path) -> Ed25519PrivateKey:
    folder.chmod(0o700)
    key = Ed25519PrivateKey.generate()
    trust(folder, key.public_key())  # first: whatever it signs must be trusted
    write_atomically(folder / "signing.pem", _private_pem(key), mode=0o600)
    return key


def trust(folder: Path, key: Ed25519PublicKey) -> None:
    """Add a public key to the trusted ones of a folder."""
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
