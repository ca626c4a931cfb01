"""Redaction of secrets and user names from texts before they reach a log or the audit log.

API keys (their id stays, it names them), bearer tokens, JSON Web Tokens, passwords in URLs, values
under telling names, and the names of users in paths.
"""

import re
from collections.abc import Mapping
from typing import Any

from drl_core.telemetry.event import sanitize_path

HIDDEN = "***"
_TELLING = re.compile(
    r"(?i)(password|passwd|secret|token|authorization|cookie|api[-_]?key|credential|private[-_]key)"
)
_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"drl_([0-9a-f]{8})_[A-Za-z0-9_-]{8,}"), rf"drl_\1_{HIDDEN}"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]*)?"), HIDDEN),
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s/@]+@"), rf"\1:{HIDDEN}@"),
    (
        re.compile(
            r"(?i)\b(password|passwd|secret|api[-_]?key|access_token)([\"']?\s*[=:]\s*)[^\s,;&]+"
        ),
        rf"\1\2{HIDDEN}",
    ),
)


def text(given: str) -> str:
    """A text without secrets and without the names of users in paths."""
    for pattern, instead in _SECRETS:
        given = pattern.sub(instead, given)
    return sanitize_path(given) or ""


def value(given: Any) -> Any:
    """Any JSON-like value, `text` applied to what it holds and hidden under telling names."""
    if isinstance(given, str):
        return text(given)
    if isinstance(given, Mapping):
        return {
            text(str(name)): HIDDEN if _TELLING.search(str(name)) else value(inner)
            for name, inner in given.items()
        }
    if isinstance(given, list | tuple | set | frozenset):
        return [value(inner) for inner in given]
    if given is None or isinstance(given, bool | int | float):
        return given
    return text(str(given))
