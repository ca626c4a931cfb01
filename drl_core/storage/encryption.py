"""Field encryption of sensitive data: deterministic AES-256-GCM-SIV with key rotation.

Bytes and the identity of their row go in, a `Sealed` comes out, which only opens for that row
(associated data). The newest key of a folder encrypts, all of them decrypt. The mode needs no
random nonce (RFC 8452): the same bytes of the same row give the same ciphertext, so that storing a
row again changes nothing. Keys are files of 32 random bytes, `<made>-<key id>.key`, readable by
their owner alone; the key id is the start of the key's SHA-256.
"""

import datetime as dt
import hashlib
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from filelock import FileLock
from msgspec import Struct

from drl_core.files import write_atomically

_KEY_BYTES = 32
_NONCE = bytes(12)
"""Fixed, which this mode allows."""


class EncryptionError(RuntimeError):
    """Ciphertext cannot be decrypted, or the keys cannot be used."""


class KeyMissing(EncryptionError):  # noqa: N818 - the caller answers it by itself
    """The key of a ciphertext is not in the folder.

    Args:
        key_id: of the key.
        folder: where it was expected.
    """

    def __init__(self, key_id: str, folder: Path) -> None:
        super().__init__(
            f"encryption key {key_id} is not in {folder}: restore its file from a backup"
        )
        self.key_id = key_id


class Sealed(Struct, frozen=True):
    """Encrypted bytes and the id of their key."""

    key_id: str
    ciphertext: bytes


class Key(Struct, frozen=True):
    """A key file; `made` is part of its name, the newest is the greatest."""

    key_id: str
    path: Path


class Keyring:
    """The encryption keys in `<keys_path>/encryption`; the first one is made when it is needed.

    Another process may add or remove keys at any time: encrypting checks the folder's modification
    time first, decrypting reads it again where a key is missing. Thread-safe.
    """

    def __init__(self, keys_path: Path) -> None:
        self.folder = keys_path / "encryption"
        self._stamp = -1
        self._ciphers: dict[str, AESGCMSIV] = {}
        self._newest = ""

    def files(self) -> list[Key]:
        """All key files, oldest first."""
        return [
            Key(path.stem.rpartition("-")[2], path) for path in sorted(self.folder.glob("*.key"))
        ]

    def newest(self) -> str:
        """The id of the key in use; made where there is none.

        Raises:
            EncryptionError: a key file is not what its name says.
        """
        if not self.folder.exists() or self.folder.stat().st_mtime_ns != self._stamp:
            self._read()
        if not self._newest:
            with self._lock():
                self._read()
                if not self._newest:
                    self._make()
        return self._newest

    def rotate(self) -> str:
        """Make a new key, which is in use from now on, and return its id."""
        with self._lock():
            return self._make()

    def remove(self, key_id: str) -> None:
        """Remove a key's file; the caller makes sure that nothing needs it any more.

        Raises:
            KeyMissing: there is no such key.
            EncryptionError: it is the key in use.
        """
        with self._lock():
            found = {key.key_id: key.path for key in self.files()}
            if key_id not in found:
                raise KeyMissing(key_id, self.folder)
            if key_id == list(found)[-1]:
                raise EncryptionError(f"key {key_id} is in use: rotate first")
            found[key_id].unlink()
            self._read()

    def seal(self, data: bytes, row: bytes) -> Sealed:
        """Encrypt with the newest key.

        Args:
            data: the plaintext.
            row: the identity of the row that it belongs to, needed to decrypt it.
        """
        key_id = self.newest()
        associated = row + b"\0" + key_id.encode()
        return Sealed(key_id, self._ciphers[key_id].encrypt(_NONCE, data, associated))

    def open(self, sealed: Sealed, row: bytes) -> bytes:
        """Decrypt.

        Raises:
            KeyMissing: its key is not in the folder.
            EncryptionError: a byte was changed, or it belongs to another row.
        """
        cipher = self._ciphers.get(sealed.key_id)
        if cipher is None:
            self._read()
            cipher = self._ciphers.get(sealed.key_id)
        if cipher is None:
            raise KeyMissing(sealed.key_id, self.folder)
        associated = row + b"\0" + sealed.key_id.encode()
        try:
            return cipher.decrypt(_NONCE, sealed.ciphertext, associated)
        except InvalidTag:
            raise EncryptionError(
                f"ciphertext of key {sealed.key_id} was changed, or belongs to another row"
            ) from None

    def _lock(self) -> FileLock:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FileLock(self.folder.parent / ".encryption.lock")

    def _make(self) -> str:
        key = secrets.token_bytes(_KEY_BYTES)
        made = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        path = self.folder / f"{made}-{_key_id(key)}.key"
        if (before := self.files()) and before[-1].path.name > path.name:
            raise EncryptionError(f"{before[-1].path.name} is from the future: set the clock")
        write_atomically(path, key, mode=0o600)
        self._read()
        return self._newest

    def _read(self) -> None:
        """Load every key; the stamp is taken first, so that a later change is seen."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stamp = self.folder.stat().st_mtime_ns
        ciphers: dict[str, AESGCMSIV] = {}
        for one in self.files():
            key = one.path.read_bytes()
            if len(key) != _KEY_BYTES or _key_id(key) != one.key_id:
                raise EncryptionError(f"{one.path} does not hold the key that its name says")
            ciphers[one.key_id] = AESGCMSIV(key)
        self._ciphers, self._newest = ciphers, next(reversed(ciphers), "")
        self._stamp = stamp


def _key_id(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:16]
