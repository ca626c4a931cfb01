"""`python -m benchmarks.fuzz [--bodies N] [--seed S]`: N malformed requests to each family.

Valid requests are changed by seeded mutations: bytes flipped, cut, doubled and nested, numbers out
of range and not numbers, wrong types, doubled keys, invalid UTF-8, wrong content types, encodings
and lengths. They go to a real service with two workers and PostgreSQL over raw sockets, and the
answers are judged: no 5xx but an overload's 503, nothing decided from a body that is not valid, the
service answers afterwards, and its memory is bounded.
"""

import argparse
import json
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.chaos import event, pattern
from benchmarks.deployment import Deployment
from benchmarks.mutations import OCTETS, Request, mutated
from drl_core.telemetry.event import TelemetryError, parse_event
from drl_serving.decisions.schemas import CarriedEvent

MODEL = "drl-policy"


@dataclass
class Found:
    """What came of one family's requests."""

    sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    server_errors: list[str] = field(default_factory=list)
    decided: list[str] = field(default_factory=list)
    """Answers with a decision to a body that is not valid."""
    seconds: float = 0.0


def row(chance: random.Random) -> list[float]:
    """A valid window."""
    return [*(chance.random() for _ in range(9)), 0, 0, 1, 1, 0]


def _infer(chance: random.Random, path: str = "") -> Request:
    tensors: list[dict[str, Any]] = [
        {"name": "windows", "shape": [1, 14], "datatype": "FP64", "data": row(chance)},
        {"name": "carry", "shape": [1, 14], "datatype": "FP64", "data": [0.0] * 14},
    ]
    body = {"inputs": tensors, "outputs": [{"name": "q_values"}]}
    if chance.random() < 0.5:
        return Request("POST", f"/v2/models/{MODEL}/infer", json.dumps(body).encode())
    raw = b""
    for tensor in tensors:
        content = struct.pack("<14d", *tensor.pop("data"))
        tensor["parameters"] = {"binary_data_size": len(content)}
        raw += content
    head = json.dumps(body).encode()
    headers = {"Content-Type": OCTETS, "Inference-Header-Content-Length": str(len(head))}
    return Request("POST", f"/v2/models/{MODEL}/infer", head + raw, headers)


def _decision(chance: random.Random) -> Request:
    name = str(chance.randrange(10**9))
    match chance.randrange(4):
        case 0:
            body: Any = event("fuzz", name, 0)
            return Request("POST", "/v1/decisions", json.dumps(body).encode())
        case 1:
            body = [event("fuzz", name, step) for step in range(3)]
            return Request("POST", "/v1/decisions", json.dumps(body).encode())
        case 2:
            body = [{"event": event("fuzz", name, 0)}]
            return Request("POST", "/v1/decisions/carried", json.dumps(body).encode())
        case _:
            content = struct.pack("<28d", *row(chance), *[0.0] * 14)
            return Request("POST", "/v1/decisions/rows", content, {"Content-Type": OCTETS})


def _telemetry(chance: random.Random) -> Request:
    events = [event("fuzz", str(chance.randrange(10**9)), step) for step in range(3)]
    if chance.random() < 0.5:
        return Request("POST", "/v1/telemetry", json.dumps(events).encode())
    lines = b"".join(json.dumps(one).encode() + b"\n" for one in events)
    return Request("POST", "/v1/telemetry", lines, {"Content-Type": "application/x-ndjson"})


def _patterns(chance: random.Random) -> Request:
    one = pattern("fuzz", str(chance.randrange(10**9)), 0)
    match chance.randrange(3):
        case 0:
            return Request("POST", "/v1/patterns", json.dumps([one, one]).encode())
        case 1:
            body = {"features": one["features"], "limit": 3, "since": "2026-01-01T00:00:00Z"}
            return Request("POST", "/v1/patterns/search", json.dumps(body).encode())
        case _:
            return Request("GET", _query("/v1/patterns", chance), b"", {})


def _repository(chance: random.Random) -> Request:
    method, path = chance.choice(
        (
            ("POST", "/v2/repository/index"),
            ("POST", f"/v2/repository/models/{MODEL}/load"),
            ("GET", f"/v2/models/{MODEL}/versions/v1"),
            ("GET", f"/v2/models/{MODEL}/stats"),
            ("GET", "/v1/models"),
            ("GET", "/v1/models/v1"),
        )
    )
    return Request(method, path, b'{"ready": true, "parameters": {}}' if method == "POST" else b"")


def _log(chance: random.Random) -> Request:
    path = chance.choice(("/v1/audit", "/v1/decisions/log"))
    if chance.random() < 0.2:
        return Request("GET", f"/v1/decisions/{chance.getrandbits(128):032x}/lineage", b"", {})
    return Request("GET", _query(path, chance), b"", {})


def _query(path: str, chance: random.Random) -> str:
    names = (
        "limit",
        "cursor",
        "before",
        "since",
        "until",
        "action",
        "sandbox_id",
        "min_confidence",
    )
    values = (
        *("1", "-1", "1e400", "NaN", "", "%00", "%ff", "%F0%9F", "9" * 30, "bm9uZQ==", "null"),
        *("2026-01-01T00:00:00Z", "2026-13-01", "0001-01-01T00:00:00%2B14:00", "%ed%a0%80"),
    )
    count = chance.randint(1, 4)
    chosen = [f"{chance.choice(names)}={chance.choice(values)}" for _ in range(count)]
    return f"{path}?{'&'.join(chosen)}"


FAMILIES: dict[str, Callable[[random.Random], Request]] = {
    "decisions": _decision,
    "telemetry": _telemetry,
    "patterns": _patterns,
    "infer": _infer,
    "models and repository": _repository,
    "logs": _log,
}


def is_valid(request: Request) -> bool:
    """Whether a body may be decided from, by the contract's own parsers."""
    if request.headers.get("Content-Encoding"):  # none is supported here
        return False
    body, path = request.body, request.path.partition("?")[0].rstrip("/")
    try:
        if path.endswith("/rows"):
            return len(body) % 224 == 0 and bool(body)
        if body.lstrip(b" \t\r\n")[:1] == b"[":
            records = [bytes(raw) for raw in msgspec.json.decode(body, type=list[msgspec.Raw])]
        else:
            records = [body]
        for raw in records:
            if path.endswith("/carried"):
                msgspec.json.decode(raw, type=CarriedEvent)
            else:
                parse_event(raw)
    except (TelemetryError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return bool(records)


def run(url: str, family: str, count: int, seed: int, key: str | None = None) -> Found:
    """Send a family's malformed requests, one after another on one connection.

    Args:
        url: of the service.
        family: one of `FAMILIES`.
        count: how many.
        seed: of the mutations.
        key: an API key, where the service wants one.
    """
    chance, found, began = random.Random(f"{family} {seed}"), Found(), time.monotonic()
    host = url.removeprefix("http://")
    connection = HTTPConnection(host, timeout=30)
    while found.sent < count:
        request = FAMILIES[family](chance)
        if key is not None:
            request.headers["Authorization"] = f"Bearer {key}"
        request = mutated(request, chance)
        found.sent += 1
        try:
            status, content = _send(connection, request)
        except (HTTPException, OSError) as error:  # refused by the HTTP parser, which hangs up
            found.statuses[type(error).__name__] += 1
            connection.close()
            connection = HTTPConnection(host, timeout=30)
            continue
        found.statuses[str(status)] += 1
        overload = status == 503 and b"overloaded" in content
        if status >= 500 and not overload:
            found.server_errors.append(f"{status} {content[:300]!r} {request}"[:1500])
        if family == "decisions" and status == 200 and not is_valid(request):
            found.decided.append(f"{content[:300]!r} {request}"[:1500])
    connection.close()
    found.seconds = time.monotonic() - began
    return found


def _send(connection: HTTPConnection, request: Request) -> tuple[int, bytes]:
    connection.putrequest(request.method, request.path.encode().decode("latin-1"))
    for name, value in request.headers.items():
        connection.putheader(name, value.encode("latin-1"))
    connection.putheader("Content-Length", str(len(request.body)))
    connection.endheaders()
    connection.send(request.body)
    answer = connection.getresponse()
    return answer.status, answer.read()


def run_calls(target: str, count: int, seed: int, key: str | None = None) -> Found:
    """`benchmarks.fuzz_calls` in a process of its own; arguments as those of `run`.

    Clients of the protocol bring messages of the same names, which one process has once.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fuzz_calls", target, str(count), str(seed), key or ""],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        check=True,
    )
    told = msgspec.json.decode(done.stdout)
    return Found(**{**told, "statuses": Counter(told["statuses"])})


def main() -> None:
    """Run and print."""
    from benchmarks.deployment import free_port
    from benchmarks.release_variants import Publisher

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    calls = free_port()
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        Publisher(home).publish(1)
        with Deployment(home, DRL_SERVING__GRPC_PORT=str(calls)) as deployment:
            for family in (*FAMILIES, "gRPC"):
                before = deployment.memory_bytes()
                if family == "gRPC":
                    found = run_calls(f"127.0.0.1:{calls}", options.bodies, options.seed)
                else:
                    found = run(deployment.url, family, options.bodies, options.seed)
                grown = (deployment.memory_bytes() - before) / 2**20
                assert deployment.answers()
                bad += len(found.server_errors) + len(found.decided)
                print(
                    f"{family:<22}{found.sent:>7} in {found.seconds:.0f} s, "
                    f"memory {grown:+.1f} MiB, 5xx {len(found.server_errors)}, "
                    f"decided {len(found.decided)}, "
                    f"{dict(sorted(found.statuses.items()))}",
                    flush=True,
                )
                for line in [*found.server_errors, *found.decided][:5]:
                    print("   ", line)
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
