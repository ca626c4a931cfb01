"""HTTPS by two files; a wrong pair is refused before anything listens."""

import socket
import ssl
import threading
import time
from pathlib import Path

import httpx
import pytest
import trustme
import uvicorn
from litestar import Litestar, get

from drl_core.settings import Serving, Settings, SettingsError
from drl_serving.access.tls import uvicorn_options
from drl_serving.http.security_headers import json_headers, page_headers


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def configured(tmp_path: Path, authority: trustme.CA) -> Settings:
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "certificate.pem"))
    serving = Serving(tls_certificate="certificate.pem", tls_private_key="key.pem")
    return Settings(home=str(tmp_path), serving=serving)


def test_the_service_answers_over_https_and_nothing_older_than_tls_1_2(
    configured: Settings, authority: trustme.CA
) -> None:
    @get("/", sync_to_thread=False)
    def hello() -> str:
        return "hello"

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        config = uvicorn.Config(
            Litestar([hello], openapi_config=None),
            log_config=None,
            lifespan="off",
            **uvicorn_options(configured),
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            trusting = ssl.create_default_context()
            authority.configure_trust(trusting)
            assert httpx.get(f"https://127.0.0.1:{port}/", verify=trusting).text == "hello"
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                httpx.get(f"https://127.0.0.1:{port}/")
            with (
                socket.create_connection(("127.0.0.1", port)) as raw,
                trusting.wrap_socket(raw, server_hostname="127.0.0.1") as secure,
            ):
                assert secure.version() == "TLSv1.3"
            assert config.ssl is not None
            assert config.ssl.minimum_version == ssl.TLSVersion.TLSv1_2
            weak = [c["name"] for c in config.ssl.get_ciphers() if "CBC" in c["name"]]
            assert weak == []
        finally:
            server.should_exit = True
            thread.join(30)


def test_the_oldest_version_is_tls_1_2_where_openssl_is_configured_to_allow_older(
    configured: Settings,
) -> None:
    lenient = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    lenient.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context = uvicorn_options(configured)["ssl_context_factory"](None, lambda: lenient)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_without_files_there_is_no_tls() -> None:
    assert uvicorn_options(Settings()) == {}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tls_certificate": None}, "tls_certificate is missing"),
        ({"tls_private_key": None}, "tls_private_key is missing"),
        ({"tls_private_key": "certificate.pem"}, "tls_private_key"),
        ({"tls_certificate": "nowhere.pem"}, "nowhere.pem"),
    ],
)
def test_files_that_cannot_be_used_are_refused_by_field(
    configured: Settings, changes: dict[str, str | None], field: str
) -> None:
    files = {"tls_certificate": "certificate.pem", "tls_private_key": "key.pem"} | changes
    with pytest.raises(SettingsError, match=field):
        uvicorn_options(Settings(home=configured.home, serving=Serving(**files)))


def test_every_answer_says_what_a_browser_must_not_do() -> None:
    for headers in (dict(json_headers(tls=False)), dict(page_headers(tls=False))):
        assert headers[b"x-content-type-options"] == b"nosniff"
        assert headers[b"cache-control"] == b"no-store"
        assert b"frame-ancestors 'none'" in headers[b"content-security-policy"]
        assert b"unsafe" not in headers[b"content-security-policy"]
        assert b"strict-transport-security" not in headers
    assert dict(json_headers(tls=True))[b"strict-transport-security"] == b"max-age=31536000"
    assert dict(page_headers(tls=True))[b"strict-transport-security"] == b"max-age=31536000"
