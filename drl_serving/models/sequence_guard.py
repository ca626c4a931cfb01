"""Rollback protection: the highest release that was ever accepted here; it outlives the process.

Without it, a restarted service would take any old release that somebody put back into the store.
The workers share one small file under the state folder, replaced atomically before each swap.
"""

import hashlib
from pathlib import Path

import msgspec
from filelock import FileLock
from msgspec import Struct

from drl_core.files import write_atomically
from drl_core.release.errors import BundleError
from drl_core.release.manifest import Manifest


class AcceptedRelease(Struct, frozen=True):
    """A release that was accepted; `digest` tells two apart that claim the same number."""

    sequence: int = 0
    digest: str = ""


class HighestSequence:
    """The file that remembers."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> AcceptedRelease:
        """The highest release accepted so far; number 0 before the first.

        Raises:
            BundleError: `state`, the file is damaged, so no release can be shown to be newer.
        """
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=AcceptedRelease)
        except FileNotFoundError:
            return AcceptedRelease()
        except (msgspec.MsgspecError, UnicodeDecodeError) as cause:
            raise BundleError(
                "state",
                f"{self.path} is damaged ({cause}); remove it if the store is to be trusted",
            ) from None

    def require_newer(self, manifest: Manifest, highest: AcceptedRelease) -> None:
        """Refuse another release under the number of the highest one.

        Raises:
            BundleError: `sequence`.
        """
        if manifest.sequence == highest.sequence and digest(manifest) != highest.digest:
            raise BundleError("sequence", f"two releases have number {manifest.sequence}")

    def raise_to(self, manifest: Manifest) -> None:
        """Remember a release, durably, unless a higher one is remembered already."""
        if self.read().sequence >= manifest.sequence:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            if self.read().sequence < manifest.sequence:
                accepted = AcceptedRelease(manifest.sequence, digest(manifest))
                write_atomically(self.path, msgspec.json.encode(accepted))


def digest(manifest: Manifest) -> str:
    """SHA-256 of what was signed."""
    return hashlib.sha256(msgspec.json.encode(manifest)).hexdigest()
