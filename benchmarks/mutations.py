"""Seeded mutations of valid requests: what `benchmarks.fuzz` sends."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

JSON, OCTETS = "application/json", "application/octet-stream"
_ODD: tuple[Any, ...] = (
    *(None, True, -1, 0.5, 2**31, 2**63, -(2**63), 10**400, 1e308, "", "x" * 2000, "\0", [], {}),
    *(
        [[[]]],
        {"a": {"b": {}}},
        "NaN",
        "1",
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ),
)
_RAW = (b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"01", b"+1", b"0x1", b"\xff\xfe")


@dataclass
class Request:
    """What is sent; headers are as given, however wrong."""

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": JSON})


def mutated(request: Request, chance: random.Random) -> Request:
    """The request with one to three things wrong with it, most of the time."""
    made = Request(request.method, request.path, request.body, dict(request.headers))
    for _ in range(chance.randint(1, 3)):
        chance.choice(_MUTATIONS)(made, chance)
    return made


def _flip(made: Request, chance: random.Random) -> None:
    body = bytearray(made.body)
    for _ in range(min(len(body), chance.randint(1, 4))):
        body[chance.randrange(len(body))] = chance.randrange(256)
    made.body = bytes(body)


def _cut(made: Request, chance: random.Random) -> None:
    made.body = made.body[: chance.randrange(len(made.body) + 1)]


def _insert(made: Request, chance: random.Random) -> None:
    at = chance.randrange(len(made.body) + 1)
    made.body = made.body[:at] + chance.choice(_RAW) + made.body[at:]


def _replace_value(made: Request, chance: random.Random) -> None:
    """A value somewhere in the JSON becomes an odd one."""
    try:
        document = json.loads(made.body)
    except (ValueError, RecursionError):
        return
    node, key = document, None
    parent: Any = None
    while isinstance(node, dict | list) and node and (parent is None or chance.random() < 0.8):
        parent = node
        key = chance.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = node[key]
    if parent is None:
        return
    match chance.randrange(4):
        case 0 if isinstance(parent, dict):
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[f"{key}_"] = parent.pop(key)
        case _:
            parent[key] = chance.choice(_ODD)
    made.body = json.dumps(document).encode()


def _raw_number(made: Request, chance: random.Random) -> None:
    """A number becomes none."""
    places = [place for place, byte in enumerate(made.body) if 48 <= byte <= 57]
    if places:
        at = chance.choice(places)
        made.body = made.body[:at] + chance.choice(_RAW) + made.body[at + 1 :]


def _double_key(made: Request, chance: random.Random) -> None:
    if made.body[:1] == b"{":
        made.body = b'{"step": "x", "inputs": 5,' + made.body[1:]


def _nest(made: Request, chance: random.Random) -> None:
    deep = chance.choice((3, 100, 20_000))
    made.body = b"[" * deep + made.body + b"]" * chance.choice((deep, 0))


def _repeat(made: Request, chance: random.Random) -> None:
    made.body *= chance.randint(2, 5)


def _noise(made: Request, chance: random.Random) -> None:
    made.body = chance.randbytes(chance.randint(0, 300))


def _type(made: Request, chance: random.Random) -> None:
    made.headers["Content-Type"] = chance.choice(
        (JSON, OCTETS, "text/plain", "", "application/json; charset=utf-16", "multipart/form-data")
    )


def _encoding(made: Request, chance: random.Random) -> None:
    made.headers["Content-Encoding"] = chance.choice(
        ("gzip", "deflate", "br", "zstd", "x", "gzip, gzip")
    )


def _binary_length(made: Request, chance: random.Random) -> None:
    lengths = ("0", "-1", "9" * 30, "x", "", "1e3", str(len(made.body)), str(len(made.body) + 1))
    made.headers["Inference-Header-Content-Length"] = chance.choice(lengths)


def _path(made: Request, chance: random.Random) -> None:
    odd = ("%00", "%ff", "%ed%a0%80", "..%2f", "%2e%2e/", "x" * 3000, "?limit=-1", "&a[]=1", "/")
    made.path += chance.choice(odd)


def _header(made: Request, chance: random.Random) -> None:
    name = chance.choice(
        ("traceparent", "Accept", "Last-Event-ID", "Authorization", "X-Odd", "Cookie")
    )
    made.headers[name] = chance.choice(
        ("", "\xff\xfe", "0" * 5000, "00-0-0-0", "Bearer \xe9", "*/*;q=x")
    )


_MUTATIONS: tuple[Callable[[Request, random.Random], None], ...] = (
    *(_flip, _cut, _insert, _replace_value, _replace_value, _replace_value, _raw_number),
    *(_double_key, _nest, _repeat, _noise, _type, _encoding, _binary_length, _path, _header),
)
