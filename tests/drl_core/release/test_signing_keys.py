"""Keys rotate and are distrusted; staged releases and pruning keep the pointer's guard."""

from pathlib import Path

import msgspec
import pytest
from test_store import ABOUT, KEY, MODEL, TRUSTED, named

from drl_core.release import signing_keys
from drl_core.release.errors import BundleError
from drl_core.release.manifest import Manifest
from drl_core.release.store import ModelStore


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    store = ModelStore(tmp_path / "models")
    store.publish(MODEL, ABOUT, KEY)
    return store


def reason_of(error: pytest.ExceptionInfo[BundleError]) -> str:
    return error.value.reason


def test_after_a_rotation_both_keys_are_trusted_until_the_old_one_is_distrusted(
    tmp_path: Path,
) -> None:
    folder, store = tmp_path / "keys", ModelStore(tmp_path / "models")
    old = signing_keys.signing_key(folder)
    store.publish(MODEL, ABOUT, old)
    new = signing_keys.rotate(folder)
    ids = [signing_keys.key_id(key.public_key()) for key in (old, new)]
    assert set(signing_keys.trusted_keys(folder)) == set(ids)
    assert signing_keys.signing_key(folder).private_bytes_raw() == new.private_bytes_raw()
    assert (folder / "signing.pem").stat().st_mode & 0o777 == 0o600
    again = store.reissue(signing_keys.trusted_keys(folder), new)
    assert (again.model_version, again.sequence) == (ABOUT.model_version, 2)
    with pytest.raises(BundleError) as error:
        signing_keys.distrust(folder, ids[1])
    assert reason_of(error) == "signing_key"
    signing_keys.distrust(folder, ids[0])
    assert set(signing_keys.trusted_keys(folder)) == {ids[1]}
    release = store.load(signing_keys.trusted_keys(folder))
    assert (release.key_id, release.model) == (ids[1], MODEL)
    with pytest.raises(BundleError) as error:
        store.load(signing_keys.trusted_keys(folder), store.releases()[0])
    assert reason_of(error) == "unknown_key"
    with pytest.raises(BundleError, match="unknown_key"):
        signing_keys.distrust(folder, ids[0])
    with pytest.raises(BundleError, match="unknown_key"):
        signing_keys.distrust(folder, "../signing")


def test_a_machine_without_the_signing_key_is_told_so(tmp_path: Path) -> None:
    assert signing_keys.existing_signing_key(tmp_path) is None
    (tmp_path / "signing.pem").write_text("rubbish")
    with pytest.raises(BundleError, match="signing_key"):
        signing_keys.existing_signing_key(tmp_path)


def test_a_staged_release_can_be_found_but_never_pointed_to(store: ModelStore) -> None:
    staged = store.stage(b"challenger", named("v2"), KEY)
    assert (staged.sequence, staged.staged) == (2, True)
    assert store.load(TRUSTED).manifest.model_version == "v1"
    assert store.find("v2", TRUSTED).model == b"challenger"
    store.current_path.write_bytes(store.releases()[-1].read_bytes())
    with pytest.raises(BundleError) as error:
        store.load(TRUSTED)
    assert reason_of(error) == "staged"
    released = store.publish(b"challenger", staged, KEY)
    assert (released.sequence, released.staged) == (3, False)
    assert store.rollback(TRUSTED, KEY).model_version == "v1"


def test_a_rollback_never_comes_upon_a_staged_release(store: ModelStore) -> None:
    store.stage(b"challenger", named("v2"), KEY)
    store.publish(b"three", named("v3"), KEY)
    assert store.rollback(TRUSTED, KEY).model_version == "v1"


def test_an_unknown_or_broken_version_is_not_found(store: ModelStore) -> None:
    with pytest.raises(BundleError) as error:
        store.find("v9", TRUSTED)
    assert reason_of(error) == "unknown_version"
    store.publish(b"two", named("v2"), KEY)
    (store.root / store.find("v2", TRUSTED).manifest.blob).write_bytes(b"other")
    with pytest.raises(BundleError) as error:
        store.find("v2", TRUSTED)
    assert reason_of(error) == "checksum"


def test_pruning_keeps_the_last_ones_the_pinned_and_the_current(store: ModelStore) -> None:
    for number in range(2, 8):
        write = store.stage if number == 3 else store.publish
        write(f"{number}".encode(), named(f"v{number}"), KEY)
    removed = store.prune(2, TRUSTED, ["v3", "v9"])
    left = [store.load(TRUSTED, path).manifest.model_version for path in store.releases()]
    assert left == ["v3", "v6", "v7"]
    assert len(removed) == 4 + 4
    assert store.load(TRUSTED).manifest.model_version == "v7"
    assert len(list((store.root / "blobs").iterdir())) == 3
    assert store.publish(b"8", named("v8"), KEY).sequence == 8
    assert store.rollback(TRUSTED, KEY).model_version == "v7"


def test_pruning_a_store_that_cannot_be_read_removes_nothing(store: ModelStore) -> None:
    assert store.prune(1, {}) == []
    assert store.load(TRUSTED)


def test_an_older_manifest_without_the_field_is_not_staged() -> None:
    raw = msgspec.json.decode(msgspec.json.encode(ABOUT))
    del raw["staged"]
    assert not msgspec.convert(raw, Manifest).staged
