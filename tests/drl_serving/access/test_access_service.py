"""Authentication, authorisation and rate limits: who gets in, 401, 403, 429, and their headers."""

import datetime as dt
import json
import os
import time
from pathlib import Path
from typing import Any

import jwt
import lmdb
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from litestar import Litestar, get
from litestar.datastructures import State
from litestar.testing import TestClient
from litestar.types import ASGIApp, Receive, Scope, Send

from drl_core.settings import Access as AccessSettings
from drl_core.settings import Serving, Settings, SettingsError
from drl_serving.access.api_keys import ApiKeyring, KeyFile
from drl_serving.access.guards import requires
from drl_serving.access.jwt_tokens import MAX_BYTES
from drl_serving.access.principal import SCOPES
from drl_serving.access.service import (
    GUESSES_AT_ONCE,
    AccessControl,
    Principal,
    require_credentials,
)
from drl_serving.http.problems import Problem, answer

ISSUER, AUDIENCE = "https://issuer.example", "drl"
Headers = list[tuple[bytes, bytes]]


class House:
    """A home with keys, and the access of one worker."""

    def __init__(self, home: Path, **changes: Any) -> None:
        self.settings = Settings(home=str(home), access=AccessSettings(**changes))
        self.keys = KeyFile(self.settings.keys_path)
        self.env = lmdb.open(str(home / "shared"), max_dbs=1, sync=False)
        self.refused: list[tuple[str, str, str | None]] = []
        self.open()

    def open(self) -> None:
        self.access = AccessControl(
            self.settings,
            self.env,
            self.env.open_db(b"buckets"),
            lambda *refusal: self.refused.append(refusal),
        )

    def key(self, *scopes: str) -> Headers:
        """Headers with a new key, which the running access has taken."""
        _, text = self.keys.create("test", scopes or ("decide",))
        self.access.poll()
        return bearer(text)

    def problem(self, headers: Headers, client: str | None = "192.0.2.1") -> Problem:
        with pytest.raises(Problem) as caught:
            self.access.authenticate(headers, client)
        return caught.value


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def bearer(text: str | bytes) -> Headers:
    value = text.encode() if isinstance(text, str) else text
    return [(b"host", b"x"), (b"authorization", b"Bearer " + value)]


def test_without_credentials_configured_everybody_on_this_machine_may_do_all(house: House) -> None:
    principal = house.access.authenticate([])
    assert (principal.id, principal.scopes) == ("anonymous", SCOPES)
    assert not house.access.required


@pytest.mark.property(44)
def test_from_the_first_key_on_credentials_are_needed(house: House) -> None:
    headers = house.key("decide", "ingest")
    assert house.access.authenticate(headers).scopes == {"decide", "ingest"}
    problem = house.problem([])
    assert problem.status == 401
    assert problem.headers["WWW-Authenticate"] == "Bearer"
    assert "drl keys create" in problem.next_step
    assert house.refused == [("missing", "anonymous", "192.0.2.1")]


@pytest.mark.property(44)
def test_with_all_keys_revoked_or_gone_the_door_stays_shut(house: House) -> None:
    headers = house.key()
    assert house.access.authenticate(headers)
    house.keys.revoke(house.keys.read()[0].id)
    assert house.access.poll()
    assert house.problem(headers).status == 401
    house.open()
    assert house.problem([]).status == 401, "after a restart as well"
    house.keys.path.unlink()
    assert house.access.poll()
    assert house.problem([]).status == 401


@pytest.mark.property(44)
def test_a_key_that_is_revoked_while_it_is_verified_is_not_remembered(house: House) -> None:
    headers = house.key()

    class Interrupted(ApiKeyring):
        def verify(self, credential: bytes) -> tuple[Principal, dt.datetime] | None:
            found = super().verify(credential)
            house.keys.revoke(house.keys.read()[0].id)
            assert house.access.poll()
            return found

    house.access._keyring = Interrupted(house.keys.read())
    assert house.access.authenticate(headers), "it was good when it was looked at"
    assert house.problem(headers).status == 401


def test_a_damaged_key_file_leaves_the_keys_as_they_were(house: House) -> None:
    headers = house.key()
    house.keys.path.write_text("[{]")
    assert not house.access.poll()
    assert house.access.authenticate(headers).kind == "key"


def test_a_key_may_come_in_a_header_of_its_own(house: House) -> None:
    [_, (_, value)] = house.key()
    key = value.removeprefix(b"Bearer ")
    assert house.access.authenticate([(b"x-api-key", key)]).kind == "key"
    assert house.access.authenticate([(b"authorization", b"bearer  " + key)]).kind == "key"
    both = [(b"x-api-key", key), (b"authorization", b"Bearer " + key)]
    assert house.problem(both).status == 401
    assert house.problem([(b"authorization", b"Basic " + key)]).status == 401


def test_a_key_that_expires_while_remembered_is_refused_then(house: House) -> None:
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=0.3)
    _, text = house.keys.create("short", ["decide"], soon)
    house.access.poll()
    assert house.access.authenticate(bearer(text))
    time.sleep(0.35)
    assert house.problem(bearer(text)).status == 401


@pytest.mark.property(44)
def test_guessing_is_slow_and_known_callers_of_the_same_address_go_on(house: House) -> None:
    known = house.key()
    fresh = house.key()
    house.access.authenticate(known, "192.0.2.1")
    guess = "drl_00000000_" + "A" * 43
    statuses = [house.problem(bearer(guess)).status for _ in range(GUESSES_AT_ONCE + 5)]
    assert statuses == [401] * GUESSES_AT_ONCE + [429] * 5
    assert house.access.authenticate(known, "192.0.2.1"), "verified before"
    throttled = house.problem(fresh)
    assert throttled.status == 429, "a right guess is not told either"
    assert 1 <= int(throttled.headers["Retry-After"]) <= 5
    assert house.access.authenticate(fresh, "192.0.2.2"), "another address is not slowed"
    assert ("throttled", "anonymous", "192.0.2.1") in house.refused


def test_addresses_of_one_ipv6_network_are_slowed_together(house: House) -> None:
    house.key()
    for n in range(GUESSES_AT_ONCE):
        house.problem(bearer("wrong"), f"2001:db8::{n + 1:x}")
    assert house.problem(bearer("wrong"), "2001:db8::ffff").status == 429
    assert house.problem(bearer("wrong"), "2001:db8:0:1::1").status == 401


def test_what_is_remembered_is_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drl_serving.access.service.MAX_VERIFIED", 2)
    every = [house.key() for _ in range(4)]
    for headers in every * 2:
        assert house.access.authenticate(headers)
    assert len(house.access._verified) == 2


def test_a_caller_beyond_the_rate_is_told_when_to_come_back(house: House) -> None:
    principal = Principal("key:1", "key", frozenset())
    for _ in range(50):
        house.access.admit(principal)  # no limit is set
    house.access.configure(AccessSettings(rate_per_s=0.5, rate_burst=3))
    for _ in range(3):
        house.access.admit(principal)
    with pytest.raises(Problem) as caught:
        house.access.admit(principal)
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "2")
    assert house.refused == [("rate", "key:1", None)]
    house.access.configure(AccessSettings())
    house.access.admit(principal)


@pytest.mark.property(44)
def test_a_route_asks_for_its_scope(house: House) -> None:
    @get("/v1/secret", guards=[requires("patterns")])
    async def secret() -> str:
        return "it"

    app = Litestar(
        [secret],
        exception_handlers={Exception: answer},
        openapi_config=None,
        state=State({"access": house.access}),
    )

    def client(principal: Principal | None) -> TestClient[Any]:
        return TestClient(_front(app, principal))

    with client(Principal("key:1", "key", frozenset({"patterns"}))) as allowed:
        assert allowed.get("/v1/secret").text == "it"
    others = SCOPES - {"patterns"}
    for refused in (None, Principal("key:2", "key", others)):
        with client(refused) as stranger:
            response = stranger.get("/v1/secret")
        assert response.status_code == 403
        assert response.json()["type"] == "urn:drl:problem:missing-scope"
        assert "patterns" in response.headers["WWW-Authenticate"]
    assert house.refused == [("scope", "key:2", "testclient")]


def _front(app: Litestar, principal: Principal | None) -> ASGIApp:
    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["state"] = {} if principal is None else {"principal": principal}
        await app(scope, receive, send)

    return front


class Issuer:
    """Signs tokens with one key."""

    def __init__(self, kind: str) -> None:
        self.algorithm = kind
        self.private: Any = {
            "EdDSA": ed25519.Ed25519PrivateKey.generate,
            "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
            "RS256": lambda: rsa.generate_private_key(65537, 2048),
        }[kind]()
        self.pem: bytes = self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "analyst-7",
            "nbf": now - 5,
            "exp": now + 60,
            "scope": "patterns review unknown",
        } | changes
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, headers: dict[str, Any] | None = None, **changes: Any) -> str:
        return jwt.encode(self.claims(**changes), self.private, self.algorithm, headers=headers)

    def jwk(self, kid: str) -> dict[str, Any]:
        name = {"EdDSA": "OKPAlgorithm", "ES256": "ECAlgorithm", "RS256": "RSAAlgorithm"}
        algorithm = getattr(jwt.algorithms, name[self.algorithm])
        return {**json.loads(algorithm.to_jwk(self.private.public_key())), "kid": kid}


def with_issuer(home: Path, content: bytes) -> House:
    (home / "issuer").write_bytes(content)
    return House(home, jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwt_keys="issuer")


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer("EdDSA")


@pytest.mark.parametrize("kind", ["EdDSA", "ES256", "RS256"])
def test_a_token_of_the_issuer_is_accepted(tmp_path: Path, kind: str) -> None:
    issuer = Issuer(kind)
    house = with_issuer(tmp_path, issuer.pem)
    principal = house.access.authenticate(bearer(issuer.token()))
    assert principal == Principal("jwt:analyst-7", "jwt", frozenset({"patterns", "review"}))
    listed = house.access.authenticate(bearer(issuer.token(scope=None, scp=["decide"])))
    assert listed.scopes == {"decide"}


def test_a_token_names_its_key_among_several(tmp_path: Path) -> None:
    first, second, foreign = Issuer("EdDSA"), Issuer("ES256"), Issuer("EdDSA")
    keys = {"keys": [first.jwk("a"), second.jwk("b"), {**foreign.jwk("c"), "use": "enc"}]}
    house = with_issuer(tmp_path, json.dumps(keys).encode())
    assert house.access.authenticate(bearer(first.token({"kid": "a"})))
    assert house.access.authenticate(bearer(second.token({"kid": "b"})))
    for token in (first.token({"kid": "b"}), first.token(), foreign.token({"kid": "c"})):
        assert house.problem(bearer(token)).status == 401


_HOSTILE: dict[str, dict[str, Any]] = {
    "expired": {"exp": 1},
    "not yet": {"nbf": 1 << 33},
    "another audience": {"aud": "other"},
    "another issuer": {"iss": "https://other.example"},
    "no expiry": {"exp": None},
    "no begin": {"nbf": None},
    "no subject": {"sub": None},
    "no audience": {"aud": None},
    "no issuer": {"iss": None},
    "a subject that is no text": {"sub": 7},
    "a subject with a line break": {"sub": "a\nb"},
    "a subject that is too long": {"sub": "a" * 201},
    "scopes that are no texts": {"scope": [1]},
    "an expiry that is no number": {"exp": "soon"},
    "an expiry beyond all years": {"exp": 1 << 62},
    "too big": {"padding": "a" * MAX_BYTES},
}


@pytest.mark.property(44)
@pytest.mark.parametrize("changes", _HOSTILE.values(), ids=_HOSTILE.keys())
def test_a_token_that_is_not_good_is_refused(
    tmp_path: Path, issuer: Issuer, changes: dict[str, Any]
) -> None:
    house = with_issuer(tmp_path, issuer.pem)
    claims = issuer.claims(**changes)
    token = jwt.api_jws.encode(json.dumps(claims).encode(), issuer.private, "EdDSA")
    problem = house.problem(bearer(token))
    assert problem.status == 401
    assert "invalid_token" in problem.headers["WWW-Authenticate"]
    assert problem.detail == "invalid credentials", "which part was wrong is not said"


@pytest.mark.property(44)
def test_a_token_cannot_choose_how_it_is_verified(tmp_path: Path, issuer: Issuer) -> None:
    house = with_issuer(tmp_path, issuer.pem)
    unsigned = jwt.encode(issuer.claims(), None, "none")  # type: ignore[arg-type]
    part = [jwt.utils.base64url_encode(json.dumps(x).encode()).decode() for x in (
        {"alg": "HS256", "typ": "JWT"}, issuer.claims())]  # fmt: skip
    signing_input = ".".join(part).encode()
    mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    confused = (
        signing_input + b"." + jwt.utils.base64url_encode(mac.sign(signing_input, issuer.pem))
    )
    foreign = Issuer("EdDSA").token()
    good = issuer.token()
    torn = good[:-4] + ("AAAA" if good[-4:] != "AAAA" else "BBBB")
    for token in (unsigned, confused.decode(), foreign, torn):
        assert house.problem(bearer(token), os.urandom(4).hex()).status == 401
    assert house.access.authenticate(bearer(good))


@pytest.fixture(scope="module")
def issuer_house(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> House:
    return with_issuer(tmp_path_factory.mktemp("home"), issuer.pem)


@pytest.mark.property(44)
@settings(max_examples=200)
@given(st.one_of(st.binary(max_size=300), st.from_regex(rb"[\w-]{0,40}\.[\w-]{0,40}\.[\w-]{0,20}")))
def test_no_bytes_crash_the_verification_of_tokens(issuer_house: House, guess: bytes) -> None:
    assert issuer_house.problem(bearer(guess), os.urandom(8).hex()).status == 401


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"jwt_issuer": ISSUER}, "jwt_audience"),
        ({"jwt_keys": "issuer"}, "jwt_issuer"),
        ({"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_keys": "none"}, "jwt_keys"),
        ({"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_keys": "secret"}, "jwt_keys"),
        ({"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_keys": "weak"}, "jwt_keys"),
    ],
)
def test_an_issuer_that_cannot_be_used_is_refused_by_field(
    tmp_path: Path, changes: dict[str, str], field: str
) -> None:
    (tmp_path / "secret").write_text(json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}))
    weak = rsa.generate_private_key(65537, 1024).public_key()  # noqa: S505
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "weak").write_bytes(weak.public_bytes(encoding, form))
    with pytest.raises(SettingsError, match=f"access.{field}"):
        House(tmp_path, **changes)


@pytest.mark.property(44)
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "a.example"])  # noqa: S104
def test_the_service_does_not_listen_beyond_this_machine_without_credentials(
    tmp_path: Path, host: str
) -> None:
    beyond = Settings(home=str(tmp_path), serving=Serving(host=host))
    with pytest.raises(SettingsError, match=r"serving\.host.*drl keys create"):
        require_credentials(beyond)
    for local in ("127.0.0.1", "::1", "localhost"):
        require_credentials(Settings(home=str(tmp_path), serving=Serving(host=local)))
    KeyFile(beyond.keys_path).create("a", ["decide"])
    require_credentials(beyond)
