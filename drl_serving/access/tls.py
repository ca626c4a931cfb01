"""TLS by configuration: two PEM files in, uvicorn's options and an SSL context out."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drl_core.settings import Settings, SettingsError

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2, forward secret and authenticated; TLS 1.3 has none that are not."""


def uvicorn_options(settings: Settings) -> dict[str, Any]:
    """Options of `uvicorn.Config`; none where TLS is not configured.

    The context speaks TLS 1.2 and 1.3, whatever the system's OpenSSL is configured to allow.

    Raises:
        SettingsError: one file of the two is missing, or they do not belong together.
    """
    files = _files(settings)
    if files is None:
        return {}
    certificate, key = files
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as cause:
        raise SettingsError(
            f"serving.tls_certificate, serving.tls_private_key: {certificate}, {key}: {cause}"
        ) from None
    return {
        "ssl_certfile": str(certificate),
        "ssl_keyfile": str(key),
        "ssl_version": ssl.PROTOCOL_TLS_SERVER,
        "ssl_ciphers": CIPHERS,
        "ssl_context_factory": _tls_1_2_or_newer,
    }


def _tls_1_2_or_newer(_: object, uvicorns: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    context = uvicorns()
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # a Python of Debian leaves it to OpenSSL
    return context


def _files(settings: Settings) -> tuple[Path, Path] | None:
    certificate = settings.serving.tls_certificate
    key = settings.serving.tls_private_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        missing = "tls_certificate" if certificate is None else "tls_private_key"
        raise SettingsError(f"serving.{missing} is missing: TLS needs certificate and private key")
    home = settings.home_path
    return home / Path(certificate).expanduser(), home / Path(key).expanduser()
