"""A gate's verdict, and the files that carry verdicts from the checks to the release manifest."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from drl_core.files import write_atomically

Severity = Literal["ERROR", "WARN"]


@dataclass(frozen=True)
class Verdict:
    """What a gate found."""

    passed: bool
    reason: str
    """One sentence, also where it passed."""
    severity: Severity = "ERROR"
    """Of a gate that is not passed: ERROR refuses, WARN lets through and says so."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Numbers, texts and lists that the verdict rests on."""


def record(folder: Path, gate: str, verdict: Verdict) -> None:
    """Keep a verdict in a folder, one file a gate; a later one of the same gate replaces it."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: getattr(verdict, name) for name in ("passed", "severity", "reason")}
    write_atomically(folder / f"{gate}.json", msgspec.json.encode(kept))


def recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """Gate -> passed, severity and reason, as `record` kept them."""
    return {
        path.stem: msgspec.json.decode(path.read_bytes()) for path in sorted(folder.glob("*.json"))
    }
