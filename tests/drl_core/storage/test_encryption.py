"""What is sealed opens for its row alone, with every key that is still there."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl_core.storage.encryption import EncryptionError, KeyMissing, Keyring, Sealed


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return Keyring(tmp_path_factory.mktemp("keys"))


def in_turn(keyring: Keyring) -> Keyring:
    """The same keys, seen by another process."""
    return Keyring(keyring.folder.parent)


@pytest.mark.property(44)
@given(st.binary(max_size=300), st.binary(max_size=60))
@settings(max_examples=150, deadline=None)
def test_what_is_sealed_opens_for_its_row_and_the_same_twice_is_the_same(
    keyring: Keyring, data: bytes, row: bytes
) -> None:
    sealed = keyring.seal(data, row)
    assert keyring.open(sealed, row) == data
    assert keyring.seal(data, row) == sealed
    assert len(data) < 8 or data not in sealed.ciphertext


@pytest.mark.property(44)
@given(st.binary(max_size=60), st.binary(max_size=20), st.data())
@settings(max_examples=150, deadline=None)
def test_any_changed_byte_or_another_row_is_refused(
    keyring: Keyring, data: bytes, row: bytes, draw: st.DataObject
) -> None:
    sealed = keyring.seal(data, row)
    changed = bytearray(sealed.ciphertext)
    changed[draw.draw(st.integers(0, len(changed) - 1))] ^= draw.draw(st.integers(1, 255))
    for wrong in (bytes(changed), sealed.ciphertext[:-1], b""):
        with pytest.raises(EncryptionError, match="changed"):
            keyring.open(Sealed(sealed.key_id, wrong), row)
    other = draw.draw(st.binary(max_size=20).filter(lambda other: other != row))
    with pytest.raises(EncryptionError, match="another row"):
        keyring.open(sealed, other)


def test_the_newest_key_seals_and_all_open_in_every_process(tmp_path: Path) -> None:
    first, other = Keyring(tmp_path), Keyring(tmp_path)
    old = first.seal(b"secret", b"row")
    assert other.open(old, b"row") == b"secret"
    assert other.seal(b"secret", b"row") == old
    made = first.rotate()
    fresh = other.seal(b"secret", b"row")
    assert fresh.key_id == made != old.key_id
    for ring in (first, other, in_turn(first)):
        assert [ring.open(one, b"row") for one in (old, fresh)] == [b"secret", b"secret"]


def test_one_key_under_the_id_of_another_opens_nothing(tmp_path: Path) -> None:
    ring = Keyring(tmp_path)
    old = ring.seal(b"secret", b"row")
    with pytest.raises(EncryptionError):
        ring.open(Sealed(ring.rotate(), old.ciphertext), b"row")


def test_a_removed_key_is_named_and_the_one_that_seals_stays(tmp_path: Path) -> None:
    ring = Keyring(tmp_path)
    old = ring.seal(b"secret", b"row")
    with pytest.raises(EncryptionError, match="rotate first"):
        ring.remove(old.key_id)
    ring.rotate()
    ring.remove(old.key_id)
    for one in (ring, in_turn(ring)):
        with pytest.raises(KeyMissing, match=old.key_id):
            one.open(old, b"row")
    with pytest.raises(KeyMissing):
        ring.remove(old.key_id)


def test_key_files_are_for_their_owner_alone_and_what_is_no_key_is_refused(tmp_path: Path) -> None:
    ring = Keyring(tmp_path)
    ring.newest()
    (key,) = ring.files()
    assert stat.S_IMODE(key.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(ring.folder.stat().st_mode) == 0o700
    key.path.write_bytes(b"x" * 32)
    with pytest.raises(EncryptionError, match=key.key_id):
        in_turn(ring).newest()


def test_all_who_start_at_once_have_one_first_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: Keyring(tmp_path).newest(), range(16)))
    assert len(set(made)) == 1
