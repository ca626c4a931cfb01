"""The model store: blobs, signed releases, one atomic pointer. Publish, load, roll back, prune.

    <store>/blobs/<sha256>.onnx        the whole decision path, feature extraction included
    <store>/releases/<sequence>.json   every release ever made, signed
    <store>/current.json               a copy of the newest release; replaced in one rename

ONNX bytes, a manifest and a private key go in, a verified `Release` comes out. The sequence number
only rises, so an old release cannot be replayed: a rollback is a new release of an old blob.
"""

import hashlib
import os
import re
from collections.abc import Collection
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from filelock import FileLock
from msgspec import Struct

from drl_core.files import write_atomically
from drl_core.release.errors import BundleError
from drl_core.release.manifest import (
    MAX_BLOB_BYTES,
    Manifest,
    open_envelope,
    sign_manifest,
    verify_manifest,
)
from drl_core.release.signing_keys import TrustedKeys, key_id

WITHDRAWN = ".withdrawn"
"""Suffix of a withdrawn release file; its sequence number is not used again."""


class Release(Struct, frozen=True):
    """A verified release: its manifest and the verified bytes of its model."""

    manifest: Manifest
    model: bytes
    key_id: str
    """The key that signed it."""


class ModelStore:
    """A folder of releases. Publishing is atomic: readers see the old release or the new one."""

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
            manifest: `sequence`, `sha256`, `blob`, `size_bytes` and `staged` are set here.
            key: signs the manifest.

        Returns:
            The manifest as signed.
        """
        with self._locked():
            signed, content = self._write(model, manifest, key, staged=False)
            write_atomically(self.current_path, content)
        return signed

    def stage(self, model: bytes, manifest: Manifest, key: Ed25519PrivateKey) -> Manifest:
        """Write a signed release that can be a challenger, and leave the pointer as it is.

        The signed manifest says that it is staged, so that it cannot be pointed to either.
        """
        with self._locked():
            return self._write(model, manifest, key, staged=True)[0]

    def reissue(self, trusted: TrustedKeys, key: Ed25519PrivateKey) -> Manifest:
        """Re-sign the current release with another key, under a new sequence number."""
        current = self.load(trusted)
        return self.publish(current.model, current.manifest, key)

    def find(self, version: str, trusted: TrustedKeys) -> Release:
        """The newest valid release of a model, staged ones included.

        Raises:
            BundleError: `unknown_version`, or what is wrong with the releases there are.
        """
        named = msgspec.json.encode({"model_version": version})[1:-1]
        wrong = BundleError("unknown_version", f"the store holds no release of {version!r}")
        for path in reversed(self.releases()):
            content = path.read_bytes()
            try:
                if named in content and verify_manifest(content, trusted).model_version == version:
                    return self.load(trusted, path)
            except BundleError as error:
                wrong = error
        raise wrong

    def prune(self, keep: int, trusted: TrustedKeys, pinned: Collection[str] = ()) -> list[Path]:
        """Remove old releases, and blobs that no kept release refers to (garbage collection).

        The last `keep` releases stay with all that came after them, the current one, and the
        newest of each pinned version.

        Args:
            keep: at least 1.
            trusted: public keys by key id.
            pinned: model versions, such as the challenger.

        Returns:
            What was removed.
        """
        with self._locked():
            known = {path: self._verified(path, trusted) for path in self.releases()}
            released = [path for path, found in known.items() if found and not found.staged]
            if not released:
                return []
            kept = {path for path in known if path >= released[-max(keep, 1) :][0]}
            for version in pinned:
                named = [p for p, m in known.items() if m and m.model_version == version]
                kept |= set(named[-1:])
            needed = [*(known[path] for path in kept), self._verified(self.current_path, trusted)]
            blobs = {found.blob for found in needed if found}
            removed = [path for path in known if path not in kept]
            for blob in sorted((self.root / "blobs").glob("*.onnx")):
                if f"blobs/{blob.name}" not in blobs:
                    removed.append(blob)
            for path in removed:  # releases first: none is left without its blob
                path.unlink()
        return removed

    def _verified(self, path: Path, trusted: TrustedKeys) -> Manifest | None:
        try:
            return verify_manifest(path.read_bytes(), trusted)
        except (BundleError, FileNotFoundError):
            return None  # it cannot be served, so nothing is kept for it

    def _write(
        self, model: bytes, manifest: Manifest, key: Ed25519PrivateKey, *, staged: bool
    ) -> tuple[Manifest, bytes]:
        digest = hashlib.sha256(model).hexdigest()
        signed = msgspec.structs.replace(
            manifest,
            sequence=self._last_sequence() + 1,
            sha256=digest,
            blob=f"blobs/{digest}.onnx",
            size_bytes=len(model),
            staged=staged,
        )
        blob = self.root / signed.blob
        if not blob.exists() or blob.read_bytes() != model:
            write_atomically(blob, model)
        content = sign_manifest(signed, key)
        release = self.root / "releases" / f"{signed.sequence:08d}.json"
        write_atomically(release, content)
        public = key.public_key()
        try:  # read back before anyone is pointed to it
            self.load({key_id(public): public}, release)
        except BundleError:
            release.unlink()  # no rollback may come upon it
            raise
        return signed, content

    def _locked(self) -> FileLock:
        for name in ("blobs", "releases"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        return FileLock(self.root / ".publish.lock")

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
            after_sequence: sequence number in use; a release must not be older (replay protection).

        Raises:
            BundleError: what is wrong with it, by its reason.
            FileNotFoundError: nothing has been released yet.
        """
        content = (path or self.current_path).read_bytes()
        manifest = verify_manifest(content, trusted)
        if manifest.staged and path is None:
            raise BundleError("staged", f"{manifest.model_version} is a challenger, not released")
        if manifest.sequence < after_sequence:
            raise BundleError(
                "sequence", f"release {manifest.sequence} is older than {after_sequence}: a replay?"
            )
        return Release(manifest, self._read_blob(manifest), open_envelope(content).key_id)

    def rollback(self, trusted: TrustedKeys, key: Ed25519PrivateKey) -> Manifest:
        """Release the model before the current one again, under a new sequence number.

        A model that was itself rolled back is skipped, so a second rollback goes further back.

        Raises:
            BundleError: there is no earlier model.
        """
        current = self.load(trusted).manifest
        earlier = self._before(current.model_version, trusted)
        if earlier is None:
            raise BundleError("rollback", f"there is no model before {current.model_version}")
        again = msgspec.structs.replace(earlier.manifest, rollback_of=current.model_version)
        return self.publish(earlier.model, again, key)

    def withdraw(
        self, version: str, trusted: TrustedKeys, key: Ed25519PrivateKey
    ) -> Manifest | None:
        """Withdraw a release that turned out wrong, even one that cannot be read.

        The model before it is released again. Where there is none, the pointer is removed and the
        release files are renamed, so that no rollback finds them. Nothing happens where another
        model is the current one by now.

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
            current = None  # it cannot be served, whatever version it claims
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
        """The newest release of another model that was not rolled back itself."""
        skipped = {version}
        for path in reversed(self.releases()):
            try:
                earlier = self.load(trusted, path)
            except BundleError:
                continue  # it cannot be served any more
            if earlier.manifest.staged:
                continue
            if earlier.manifest.rollback_of:
                skipped.add(earlier.manifest.rollback_of)
            if earlier.manifest.model_version not in skipped:
                return earlier
        return None

    def _read_blob(self, manifest: Manifest) -> bytes:
        if manifest.blob != f"blobs/{manifest.sha256}.onnx":
            raise BundleError(
                "blob_path", f"{manifest.blob!r} is not the path of the blob in this store"
            )
        if manifest.size_bytes > MAX_BLOB_BYTES:
            raise BundleError("blob_size", f"{manifest.size_bytes} bytes, at most {MAX_BLOB_BYTES}")
        path = self.root / manifest.blob
        try:
            if os.path.islink(path):  # noqa: PTH114
                raise BundleError("blob_path", f"{path} is a link")
            if path.stat().st_size > MAX_BLOB_BYTES:
                raise BundleError("blob_size", f"{path}: at most {MAX_BLOB_BYTES} bytes")
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
