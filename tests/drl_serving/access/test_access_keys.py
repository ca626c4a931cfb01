"""API keys: what is kept of them, and which texts are valid."""

import datetime as dt
import stat
import threading
from pathlib import Path

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drl_core.settings import Settings
from drl_serving.access.api_keys import ApiKey, ApiKeyring, KeyFile, KeyFileError
from drl_serving.access.service import AccessControl

HOUR = dt.timedelta(hours=1)


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys")


def holder(file: KeyFile, text: str) -> str | None:
    """Whose key a text is."""
    found = ApiKeyring(file.read()).verify(text.encode())
    return found and found[0].id


@pytest.mark.property(44)
def test_a_key_is_its_holders_and_only_its_hash_is_kept(file: KeyFile) -> None:
    key, text = file.create("console", ["decide", "ingest"])
    assert text.startswith(f"drl_{key.id}_")
    assert len(text) == 56
    principal, _ = ApiKeyring(file.read()).verify(text.encode()) or pytest.fail("not accepted")
    assert principal.id == f"key:{key.id}"
    assert principal.scopes == {"decide", "ingest"}
    assert text[13:] not in file.path.read_text()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700


@pytest.mark.property(44)
def test_a_revoked_key_is_refused(file: KeyFile) -> None:
    key, text = file.create("a", ["decide"])
    file.revoke(key.id)
    assert holder(file, text) is None


def test_a_rotated_key_has_a_new_secret_and_the_old_one_for_a_while(file: KeyFile) -> None:
    key, old = file.create("a", ["decide"])
    _, new = file.rotate(key.id, HOUR)
    assert holder(file, new) == holder(file, old) == f"key:{key.id}"
    renewed = file.read()[0]
    late = dt.datetime.now(dt.UTC) + HOUR
    assert renewed.accepts(renewed.sha256, late) is not None
    assert renewed.accepts(renewed.previous_sha256 or "", late) is None
    _, newest = file.rotate(key.id, dt.timedelta(0))
    assert holder(file, new) is None
    assert holder(file, newest) is not None
    file.revoke(key.id)
    with pytest.raises(KeyFileError, match="revoked"):
        file.rotate(key.id, HOUR)


def test_a_key_ends_when_it_expires(file: KeyFile) -> None:
    key, _ = file.create("a", ["decide"], dt.datetime.now(dt.UTC) + HOUR)
    assert key.accepts(key.sha256, dt.datetime.now(dt.UTC)) == key.expires
    assert key.accepts(key.sha256, dt.datetime.now(dt.UTC) + HOUR) is None


@pytest.mark.parametrize(
    ("name", "scopes", "expires", "field"),
    [
        ("", ["decide"], None, "name"),
        ("a" * 101, ["decide"], None, "name"),
        ("a", [], None, "scope"),
        ("a", ["decide", "everything"], None, "scope"),
        ("a", ["decide"], dt.datetime(2020, 1, 1, tzinfo=dt.UTC), "expires"),
    ],
)
def test_a_key_that_cannot_be_names_the_field(
    file: KeyFile, name: str, scopes: list[str], expires: dt.datetime | None, field: str
) -> None:
    with pytest.raises(KeyFileError, match=field):
        file.create(name, scopes, expires)
    assert file.read() == []


def test_no_key_is_known_by_a_wrong_id(file: KeyFile) -> None:
    with pytest.raises(KeyFileError, match="there is no key 12345678"):
        file.revoke("12345678")


def test_a_damaged_file_is_refused_by_name(file: KeyFile) -> None:
    file.create("a", ["decide"])
    file.path.write_text('[{"id": "x"}]')
    with pytest.raises(KeyFileError, match=r"api_keys\.json"):
        file.read()


def test_keys_made_at_the_same_time_are_all_kept(file: KeyFile) -> None:
    threads = [threading.Thread(target=file.create, args=(f"k{n}", ["decide"])) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in file.read()} == {f"k{n}" for n in range(8)}


_KEY = ApiKey(
    id="0123abcd",
    name="a",
    scopes=frozenset({"decide"}),
    sha256="0" * 64,
    created=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
)


@pytest.mark.property(44)
@given(st.one_of(st.binary(max_size=100), st.from_regex(rb"drl_0123abcd_[\w-]{43}")))
def test_no_other_bytes_are_a_key(guess: bytes) -> None:
    assert ApiKeyring([_KEY]).verify(guess) is None


def test_a_poll_beside_one_that_reads_the_file_waits_for_its_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=str(tmp_path))
    shared = lmdb.open(str(tmp_path / "shared"), max_dbs=1, sync=False)
    access = AccessControl(settings, shared, shared.open_db(b"buckets"))
    _, text = KeyFile(settings.keys_path).create("console", ["decide"])
    read, reading, go_on = KeyFile.read, threading.Event(), threading.Event()

    def slow(file: KeyFile) -> list[ApiKey]:
        reading.set()
        assert go_on.wait(30)
        return read(file)

    monkeypatch.setattr(KeyFile, "read", slow)
    first, second = (threading.Thread(target=access.poll) for _ in range(2))
    first.start()
    assert reading.wait(30)
    second.start()
    second.join(0.1)
    assert second.is_alive()
    go_on.set()
    second.join(30)
    first.join(30)
    assert access.authenticate([(b"x-api-key", text.encode())]).scopes == {"decide"}
