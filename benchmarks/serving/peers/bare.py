"""Bare ASGI: `json`, ONNX Runtime and nothing else, under uvicorn. `echo` does not even score."""

import json
from typing import Any

from benchmarks.serving.peers.scoring import score, session

_session: Any = None
_JSON = [(b"content-type", b"application/json")]


async def _body(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if not message.get("more_body"):
            return body


async def _answer(send: Any, body: bytes) -> None:
    headers = [*_JSON, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def app(scope: Any, receive: Any, send: Any) -> None:
    """POST an event, get Q-values."""
    global _session
    if scope["type"] == "http":
        if _session is None:
            _session = session()
        event = json.loads(await _body(receive))
        await _answer(send, json.dumps(score(_session, event)).encode())


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """POST anything, get it back: what the machine, uvicorn and the load generator cost."""
    if scope["type"] == "http":
        await _answer(send, await _body(receive))
