"""Security headers of every response: content security policy, no sniffing, no framing, HSTS."""

HeaderPairs = tuple[tuple[bytes, bytes], ...]

_ALWAYS: HeaderPairs = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_HSTS: HeaderPairs = ((b"strict-transport-security", b"max-age=31536000"),)
_JSON_POLICY = b"default-src 'none'; frame-ancestors 'none'"
_PAGE_POLICY = (
    b"default-src 'self'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    b"connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    b"frame-ancestors 'none'"
)


def json_headers(tls: bool) -> HeaderPairs:
    """Of answers that are no pages: nothing in them may be run or shown."""
    return (*_ALWAYS, (b"content-security-policy", _JSON_POLICY), *(_HSTS if tls else ()))


def page_headers(tls: bool) -> HeaderPairs:
    """Of HTML pages: what they load comes from this service."""
    return (*_ALWAYS, (b"content-security-policy", _PAGE_POLICY), *(_HSTS if tls else ()))
