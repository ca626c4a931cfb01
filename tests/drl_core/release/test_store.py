"""Signed releases: any changed byte is refused, readers see whole ones, rollbacks are signed."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drl_core.release.errors import BundleError
from drl_core.release.manifest import (
    MAX_BLOB_BYTES,
    Golden,
    Manifest,
    sign_manifest,
    verify_manifest,
)
from drl_core.release.signing_keys import key_id, signing_key, trusted_keys
from drl_core.release.store import ModelStore, Release

ABOUT = Manifest(
    model_version="v1",
    training_date="2026-11-22T12:00:00+00:00",
    training_episodes=10,
    final_average_reward=-0.5,
    final_loss=0.1,
    learning_rate=1e-3,
    gamma=0.99,
    input_dim=30,
    output_dim=5,
    hidden_layers=[32, 32],
    sequence=1,
    sha256="0" * 64,
    blob="",
    size_bytes=0,
    features_version=1,
    opset=18,
    preset="default",
    seed=0,
    gradient_steps=1,
    hyperparameters={},
    costs_version=1,
    checkpoint_sha256="0" * 64,
    parent_version=None,
    dagster_run_id=None,
    batch_partitions=[],
    git_commit=None,
    evaluation={},
    golden=Golden(windows=[], carry=[], q_values=[]),
)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
TRUSTED = {key_id(KEY.public_key()): KEY.public_key()}
FOREIGN = Ed25519PrivateKey.from_private_bytes(bytes(32))
MODEL = b"model bytes of version one"
Tamper = Callable[[Path], object]


def named(version: str) -> Manifest:
    return msgspec.structs.replace(ABOUT, model_version=version)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    store = ModelStore(tmp_path / "models")
    store.publish(MODEL, ABOUT, KEY)
    return store


def refusal(store: ModelStore, after_sequence: int = 0) -> str:
    with pytest.raises(BundleError) as error:
        store.load(TRUSTED, after_sequence=after_sequence)
    return error.value.reason


def forge(manifest: Manifest, key: Ed25519PrivateKey = KEY) -> bytes:
    return sign_manifest(manifest, key)


def test_a_published_model_is_read_back(store: ModelStore) -> None:
    release = store.load(TRUSTED)
    assert release.model == MODEL
    assert (release.manifest.sequence, release.manifest.size_bytes) == (1, len(MODEL))
    assert store.publish(b"two", named("v2"), KEY).sequence == 2
    assert [path.stem for path in store.releases()] == ["00000001", "00000002"]
    assert store.load(TRUSTED).manifest.model_version == "v2"
    assert store.load(TRUSTED, store.releases()[0]).model == MODEL


@pytest.mark.property(35)
def test_a_release_with_any_one_byte_changed_is_refused() -> None:
    content = forge(msgspec.structs.replace(ABOUT, blob="blobs/x.onnx"))
    assert verify_manifest(content, TRUSTED)
    for place in range(len(content)):
        for flip in (0x01, 0x20, 0x80):
            changed = bytearray(content)
            changed[place] ^= flip
            with pytest.raises(BundleError):
                verify_manifest(bytes(changed), TRUSTED)


@pytest.mark.property(35)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.integers(0, len(MODEL) - 1), byte=st.integers(0, 255))
def test_a_model_with_any_one_byte_changed_is_refused(
    store: ModelStore, place: int, byte: int
) -> None:
    (blob,) = (store.root / "blobs").iterdir()
    changed = bytearray(MODEL)
    changed[place] = byte
    blob.write_bytes(changed)
    if bytes(changed) == MODEL:
        assert store.load(TRUSTED)
    else:
        assert refusal(store) == "checksum"
    blob.write_bytes(MODEL)


@pytest.mark.property(35)
@settings(max_examples=150, deadline=None)
@given(raw=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_arbitrary_bytes_are_no_release(raw: bytes) -> None:
    with pytest.raises(BundleError, match="format"):
        verify_manifest(raw, TRUSTED)


def _envelope(store: ModelStore) -> dict[str, object]:
    return dict(msgspec.json.decode(store.current_path.read_bytes()))


def _unsigned(store: ModelStore) -> bytes:
    envelope = _envelope(store)
    del envelope["signature"]
    return msgspec.json.encode(envelope)


def _empty_signature(store: ModelStore) -> bytes:
    return msgspec.json.encode(_envelope(store) | {"signature": ""})


def _zero_signature(store: ModelStore) -> bytes:
    return msgspec.json.encode(_envelope(store) | {"signature": "0" * 128})


def _as_trusted(store: ModelStore) -> bytes:
    """Signed by a foreign key under the name of the trusted one."""
    envelope = msgspec.json.decode(forge(store.load(TRUSTED).manifest, FOREIGN))
    return msgspec.json.encode(envelope | {"key_id": next(iter(TRUSTED))})


@pytest.mark.property(35)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda s: forge(s.load(TRUSTED).manifest, FOREIGN), "unknown_key"),
        (_as_trusted, "signature"),
        (_zero_signature, "signature"),
        (_unsigned, "format"),
        (_empty_signature, "format"),
        (lambda s: s.current_path.read_bytes() + b"\n", "format"),
        (lambda s: s.current_path.read_bytes()[:-1], "format"),
        (lambda s: b"", "format"),
        (lambda s: b"{}", "format"),
    ],
    ids=[
        "foreign-key",
        "foreign-key-under-our-name",
        "zero-signature",
        "no-signature",
        "empty-signature",
        "line-end",
        "cut-short",
        "empty",
        "object",
    ],
)
def test_a_release_not_signed_by_a_trusted_key_is_refused(
    store: ModelStore, content: Callable[[ModelStore], bytes], reason: str
) -> None:
    store.current_path.write_bytes(content(store))
    assert refusal(store) == reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"blob": "../../etc/passwd"}, "blob_path"),
        ({"blob": "/etc/passwd"}, "blob_path"),
        ({"blob": f"blobs/{'1' * 64}.onnx"}, "blob_path"),
        ({"sha256": "1" * 64, "blob": f"blobs/{'1' * 64}.onnx"}, "blob_missing"),
        ({"size_bytes": MAX_BLOB_BYTES + 1}, "blob_size"),
        ({"features_version": 2}, "features_version"),
        ({"input_dim": 31}, "contract"),
        ({"output_dim": 4}, "contract"),
        ({"model_version": "../v1"}, "contract"),
        ({"sequence": 0}, "contract"),
    ],
)
def test_a_signed_release_that_breaks_the_contract_is_refused(
    store: ModelStore, change: dict[str, object], reason: str
) -> None:
    manifest = msgspec.structs.replace(store.load(TRUSTED).manifest, **change)
    store.current_path.write_bytes(forge(manifest))
    assert refusal(store) == reason


@pytest.mark.property(35)
def test_a_linked_blob_is_refused(store: ModelStore, tmp_path: Path) -> None:
    (blob,) = (store.root / "blobs").iterdir()
    elsewhere = blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(elsewhere)
    assert refusal(store) == "blob_path"


@pytest.mark.property(35)
def test_an_old_release_cannot_be_replayed(store: ModelStore) -> None:
    old = store.current_path.read_bytes()
    store.publish(b"two", named("v2"), KEY)
    served = store.load(TRUSTED).manifest.sequence
    store.current_path.write_bytes(old)
    assert refusal(store, after_sequence=served) == "sequence"


def test_a_rollback_releases_the_earlier_model_under_a_rising_sequence(store: ModelStore) -> None:
    with pytest.raises(BundleError, match="no model before v1"):
        store.rollback(TRUSTED, KEY)
    store.publish(b"two", named("v2"), KEY)
    again = store.rollback(TRUSTED, KEY)
    assert (again.model_version, again.sequence, again.rollback_of) == ("v1", 3, "v2")
    release = store.load(TRUSTED, after_sequence=2)
    assert (release.model, release.manifest) == (MODEL, again)
    with pytest.raises(BundleError, match="no model before v1"):
        store.rollback(TRUSTED, KEY)


def test_a_model_that_no_reader_would_take_is_not_released(store: ModelStore) -> None:
    other = msgspec.structs.replace(named("v2"), features_version=2)
    with pytest.raises(BundleError, match="features_version"):
        store.publish(b"two", other, KEY)
    assert store.load(TRUSTED).manifest.model_version == "v1"
    assert len(store.releases()) == 1


def test_a_second_rollback_goes_further_back_not_forth(store: ModelStore) -> None:
    for version in ("v2", "v3"):
        store.publish(version.encode(), named(version), KEY)
    assert store.rollback(TRUSTED, KEY).model_version == "v2"
    assert store.rollback(TRUSTED, KEY).model_version == "v1"
    assert store.load(TRUSTED).model == MODEL


def damage_blob(store: ModelStore) -> None:
    (store.root / store.load(TRUSTED).manifest.blob).write_bytes(b"something else")


def damage_pointer(store: ModelStore) -> None:
    store.current_path.write_bytes(b"{}")


@pytest.mark.parametrize("damage", [None, damage_blob, damage_pointer])
def test_a_release_that_turned_out_wrong_is_taken_back_even_where_it_cannot_be_read(
    store: ModelStore, damage: Callable[[ModelStore], None] | None
) -> None:
    store.publish(b"two", named("v2"), KEY)
    if damage:
        damage(store)
    for _ in range(2):  # the second time there is nothing left to do
        now = store.withdraw("v2", TRUSTED, KEY)
        assert now == store.load(TRUSTED).manifest
        assert (now.model_version, now.sequence, now.rollback_of) == ("v1", 3, "v2")
    assert store.load(TRUSTED).model == MODEL


def test_a_first_release_that_turned_out_wrong_is_withdrawn(store: ModelStore) -> None:
    for _ in range(2):
        assert store.withdraw("v1", TRUSTED, KEY) is None
        with pytest.raises(FileNotFoundError):
            store.load(TRUSTED)
    again = store.publish(b"two", named("v2"), KEY)
    assert again.sequence == 2  # its number is not given again
    with pytest.raises(BundleError, match="no model before v2"):
        store.rollback(TRUSTED, KEY)


def test_a_rollback_passes_over_a_release_that_cannot_be_served(store: ModelStore) -> None:
    store.publish(b"two", named("v2"), KEY)
    damage_blob(store)
    store.publish(b"three", named("v3"), KEY)
    assert store.rollback(TRUSTED, KEY).model_version == "v1"


def test_another_model_than_the_one_that_turned_out_wrong_stays(store: ModelStore) -> None:
    assert store.withdraw("v0", TRUSTED, KEY) == store.load(TRUSTED).manifest
    assert len(store.releases()) == 1


def test_a_signing_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    first, second = signing_key(tmp_path), signing_key(tmp_path)
    assert first.private_bytes_raw() == second.private_bytes_raw()
    assert (tmp_path / "signing.pem").stat().st_mode & 0o777 == 0o600
    assert list(trusted_keys(tmp_path)) == [key_id(first.public_key())]
    (tmp_path / "trusted" / "x.pub").write_text("rubbish")
    with pytest.raises(BundleError, match=r"trusted_key.*x\.pub"):
        trusted_keys(tmp_path)


PUBLISHER = """
import sys
from pathlib import Path
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from drl_core.release.store import ModelStore, Manifest
store, about = ModelStore(Path(sys.argv[1])), msgspec.json.decode(sys.argv[2], type=Manifest)
key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
for n in range(10_000):
    version = f"{sys.argv[3]}-{n}"
    named = msgspec.structs.replace(about, model_version=version)
    store.publish(version.encode() * 20_000, named, key)
    if n == 0:
        print("at work", flush=True)
"""


@pytest.mark.property(37)
def test_a_reader_never_sees_half_a_release_while_publishers_are_killed(tmp_path: Path) -> None:
    store, about = ModelStore(tmp_path), msgspec.json.encode(ABOUT).decode()
    seen: list[Release] = []
    for round_ in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(tmp_path), about, str(round_)],
            stdout=subprocess.PIPE,
        ) as publisher:
            assert publisher.stdout is not None
            assert publisher.stdout.readline()
            for _ in range(3 + 2 * round_):
                served = seen[-1].manifest.sequence if seen else 0
                release = store.load(TRUSTED, after_sequence=served)
                assert release.model == release.manifest.model_version.encode() * 20_000
                seen.append(release)
            publisher.kill()
            publisher.wait(30)
        assert store.load(TRUSTED, after_sequence=seen[-1].manifest.sequence)
    sequences = [int(path.stem) for path in store.releases()]
    assert sequences == list(range(1, len(sequences) + 1)), "a number was used twice or skipped"
    for path in store.releases():
        store.load(TRUSTED, path)
